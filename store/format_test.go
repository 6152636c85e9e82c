package store

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type formatField struct {
	Offset, Size int
	Name         string
}

// formatTables reads the tables of fields below each heading of the document.
func formatTables(t *testing.T) map[string][][]formatField {
	text, err := os.ReadFile("../docs/format/segment.md")
	if err != nil {
		t.Fatal(err)
	}
	tables := map[string][][]formatField{}
	row := regexp.MustCompile(`^\| (\d+) \| (\d+) \| ([a-z ]+) \|`)
	heading := ""
	for line := range strings.Lines(string(text)) {
		if h, ok := strings.CutPrefix(line, "### "); ok {
			heading = strings.TrimSpace(h)
		}
		if strings.HasPrefix(line, "| offset ") {
			tables[heading] = append(tables[heading], nil)
		}
		m := row.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		off, _ := strconv.Atoi(m[1])
		size, _ := strconv.Atoi(m[2])
		list := tables[heading]
		list[len(list)-1] = append(list[len(list)-1], formatField{off, size, m[3]})
	}
	return tables
}

// TestFormat_Document holds docs/format/segment.md and the constants together.
func TestFormat_Document(t *testing.T) {
	want := map[string][][]formatField{
		"Header": {{{hdrMagic, len(segmentMagic), "magic"}, {hdrVersion, 2, "version"}, {hdrLevel, 1, "level"}, {hdrFlags, 1, "flags"},
			{hdrBlockSize, 4, "block size"}, {hdrReplica, 16, "replica"}, {hdrSegment, 16, "segment"}, {hdrNumber, 8, "number"},
			{hdrSession, 8, "session"}, {hdrGeneration, 8, "generation"}, {hdrFirst, 8, "first"}, {hdrLast, 8, "last"}, {hdrTag, tagSize, "tag"}}},
		"Records": {{{recKind, 1, "kind"}, {recCodec, 1, "codec"}, {recDisk, 2, "disk"}, {recCount, 4, "count"}, {recEpoch, 8, "epoch"},
			{recOrdinal, 8, "ordinal"}, {recStart, 8, "start"}, {recLength, 4, "length"}, {recFlags, 4, "flags"}, {recDurable, 8, "durable"}}},
		"Index": {
			{{entDisk, 2, "disk"}, {entCodec, 1, "codec"}, {entReserved, 1, "reserved"}, {entCount, 4, "count"}, {entStart, 8, "start"},
				{entEpoch, 8, "epoch"}, {entOrdinal, 8, "ordinal"}, {entOffset, 8, "offset"}, {entLength, 4, "length"}, {entZero, 4, "zero"}},
			{{mrkKind, 1, "kind"}, {mrkReserved, 3, "reserved"}, {mrkFlags, 4, "flags"}, {mrkEpoch, 8, "epoch"}, {mrkRuns, 8, "runs"},
				{mrkTime, 8, "time"}, {mrkOffset, 8, "offset"}}},
		"Trailer": {{{trlMagic, len(trailerMagic), "magic"}, {trlVersion, 2, "version"}, {trlFlags, 2, "flags"}, {trlReserved, 4, "reserved"},
			{trlSalt, 16, "salt"}, {trlEnd, 8, "end"}, {trlIndex, 8, "index"}, {trlLength, 8, "length"}, {trlEntries, 8, "entries"},
			{trlMarks, 8, "marks"}, {trlFirst, 8, "first"}, {trlLast, 8, "last"}, {trlTag, tagSize, "tag"}, {trlSecondMagic, len(trailerMagic), "second magic"}}},
	}
	if diff := cmp.Diff(want, formatTables(t)); diff != "" {
		t.Errorf("constants and document differ (-constants +document):\n%s", diff)
	}
	for name, lists := range want {
		sizes := map[string][]int{"Header": {headerSize}, "Records": {recordSize}, "Index": {indexEntrySize, indexMarkSize}, "Trailer": {trailerSize}}[name]
		for i, fields := range lists {
			at := 0
			for _, f := range fields {
				if f.Offset != at && f.Name != "second magic" {
					t.Errorf("%s: field %s is at %d, want %d", name, f.Name, f.Offset, at)
				}
				if f.Name != "second magic" {
					at += f.Size
				}
			}
			if at != sizes[i] {
				t.Errorf("%s: has %d bytes, want %d", name, at, sizes[i])
			}
		}
	}
}
