package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"rehost/block"
)

const page = "../docs/format/wire.md"

// tables returns the rows of the page's tables, each under the last bold or
// heading text before it.
func tables(t *testing.T) map[string][][]string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][][]string{}
	title := ""
	bold := regexp.MustCompile(`^\*\*([A-Z]+)\*\*`)
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if m := bold.FindStringSubmatch(line); m != nil {
			title = m[1]
		} else if h, ok := strings.CutPrefix(line, "## "); ok {
			title = h
		} else if strings.HasPrefix(line, "|") && !strings.HasPrefix(line, "|--") {
			cells := strings.Split(strings.Trim(line, "|"), "|")
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			out[title] = append(out[title], cells)
		}
	}
	return out
}

// size is where the fields of a byte table end.
func size(t *testing.T, rows [][]string) int {
	t.Helper()
	end := 0
	for _, r := range rows {
		offset, err := strconv.Atoi(r[0])
		if err != nil {
			continue // a heading, or another table
		}
		if offset != end {
			t.Errorf("field %q is at %d, the one before ends at %d", r[2], offset, end)
		}
		n, err := strconv.Atoi(r[1])
		if err != nil {
			return end // "rest", "length"
		}
		end = offset + n
	}
	return end
}

func TestFormat_PageAgreesWithCode(t *testing.T) {
	tables := tables(t)
	for title, want := range map[string]int{
		"Preface": prefaceSize, "RUN": runHeaderSize, "COMMIT": commitSize, "ACK": ackSize, "RETRACT": retractSize, "RETRACTED": retractSize,
		"HASHES": hashesHeader, "DIFFER": differHeader,
	} {
		if got := size(t, tables[title]); got != want || got == 0 {
			t.Errorf("%s: the page says %d bytes, the code %d", title, got, want)
		}
	}
	types := 0
	var header [][]string
	for _, r := range tables["Frames"] {
		if len(r) == 3 {
			header = append(header, r)
			continue
		}
		n, err := strconv.Atoi(r[0])
		if err != nil {
			continue
		}
		types++
		k := kinds[n]
		if got, want := fmt.Sprint(r[1], r[3], r[4]), fmt.Sprint(k.name, strconv.Itoa(k.min), strconv.Itoa(k.max)); got != want {
			t.Errorf("type %d: the page says %s, the code %s", n, got, want)
		}
	}
	if types != len(kinds)-1 {
		t.Errorf("the page has %d types, the code %d", types, len(kinds)-1)
	}
	if got := size(t, header); got != headerSize {
		t.Errorf("frame header: the page says %d bytes, the code %d", got, headerSize)
	}
	codes := map[string]bool{}
	for _, r := range tables["ERROR"] {
		codes[strings.Trim(r[0], "`")] = true
	}
	for _, c := range []Code{Fenced, UnknownServer, Disconnected, DiskChanged, StagingFull, Corrupt, Protocol, Busy, Revoked, Shutdown, Internal} {
		if !codes[string(c)] {
			t.Errorf("code %s is not on the page", c)
		}
	}
	text, _ := os.ReadFile(page)
	for _, want := range []string{fmt.Sprintf("Version %d.", Version), "`REHOST\\r\\n`",
		fmt.Sprintf("| connections of a session | %d |", MaxConnections), fmt.Sprintf("| epochs under way | %d |", MaxOpenEpochs),
		fmt.Sprintf("| chunks of a question | %d |", MaxHashes), fmt.Sprintf("A chunk is %d blocks", block.ChunkBlocks),
		fmt.Sprintf("| TLS handshake, preface and HELLO together | %d s |", int(HandshakeTimeout.Seconds())),
		fmt.Sprintf("every %d seconds; whoever hears nothing for %d seconds", int(DefaultKeepAlive.Seconds()), int(DeadAfter*DefaultKeepAlive.Seconds()))} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

// samples has every message, with every field set.
func samples() []Message {
	raw := make([]byte, 3*block.Size)
	for i := range raw {
		raw[i] = byte(i * 7)
	}
	return []Message{
		Hello{Server: "s-0123456789abcdef0", Session: strings.Repeat("0f", 16), Index: 1, Count: 4, Generation: 7, Version: "1",
			Disks: []block.Disk{{ID: 1, Name: "/dev/sda", Size: 1 << 30, Boot: true, Serial: "wwn:1"}}},
		Welcome{Last: block.Point{Seq: 9, Time: time.Unix(5, 6).UTC()}, Generation: 8, MaxFrame: MaxFrame, Codecs: []string{"zero", "raw", "s2"}},
		Run{Epoch: 1 << 40, Ordinal: 1 << 50, Run: block.Run{Extent: block.Extent{Disk: 513, Start: 1 << 33, Count: 3}, Codec: block.Raw, Payload: raw}},
		Run{Epoch: 1, Run: block.Run{Extent: block.Extent{Count: 1 << 30}, Codec: block.Zero, Payload: []byte{}}},
		Commit{Point: block.Point{Seq: 3, Time: time.Unix(1<<30, 999).UTC()}, Runs: 1 << 45, Flags: block.Consistent | block.InitialSyncDone},
		Ack{1 << 60}, Retract{0}, Retract{5}, Retracted{5},
		&RefusedError{Fenced, "message", "hint"},
		Alive{},
		Hashes{Point: 1 << 50, Extent: block.Extent{Disk: 700, Start: 1 << 40, Count: block.ChunkBlocks + 1}, Question: 513, Hashes: []block.Hash{{1, 2, 31: 3}, {9}}},
		Differ{Question: 65535, Differ: []bool{true, false, false, false, false, false, false, false, true, true}},
	}
}

func encode(t testing.TB, messages ...Message) []byte {
	t.Helper()
	var b bytes.Buffer
	c := NewConn(&b, nil)
	for _, m := range messages {
		if err := c.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

var ignoreBuffer = cmp.Options{cmpopts.IgnoreUnexported(Run{}), cmpopts.EquateEmpty()}

func TestConn_EveryMessageAndBack(t *testing.T) {
	c := NewConn(bytes.NewBuffer(encode(t, samples()...)), nil)
	for _, want := range samples() {
		got, err := c.Read()
		if err != nil {
			t.Fatalf("%v: %v", want.Type(), err)
		}
		if d := cmp.Diff(want, got, ignoreBuffer); d != "" {
			t.Errorf("%v: %s", want.Type(), d)
		}
	}
	if _, err := c.Read(); err != io.EOF { //nolint:errorlint // it comes bare, see Conn.Read
		t.Errorf("got %v at the end, want EOF", err)
	}
}

// TestConn_EveryFlippedBit flips each bit of each message: none may be read as
// a message again.
func TestConn_EveryFlippedBit(t *testing.T) {
	for _, m := range samples() {
		good := encode(t, m)
		for i := range min(len(good), 400) * 8 {
			bad := bytes.Clone(good)
			bad[i/8] ^= 1 << (i % 8)
			if got, err := NewConn(bytes.NewBuffer(bad), nil).Read(); err == nil {
				t.Fatalf("%v with bit %d flipped was read as %v", m.Type(), i, got.Type())
			} else if !errors.Is(err, ErrProtocol) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%v with bit %d flipped: got %v", m.Type(), i, err)
			}
		}
		for n := 1; n < min(len(good), 400); n++ {
			if _, err := NewConn(bytes.NewBuffer(good[:n]), nil).Read(); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%v cut after %d bytes: got %v", m.Type(), n, err)
			}
		}
	}
}

// frame makes a frame with a right checksum, whatever it says.
func frame(typ Type, reserved byte, body []byte) []byte {
	b := make([]byte, headerSize)
	binary.BigEndian.PutUint32(b, uint32(len(body)))
	putHeader(b, typ, body, nil)
	if reserved != 0 {
		b[6] = reserved
	}
	return append(b, body...)
}

func TestConn_RefusesWhatIsNotInTheFormat(t *testing.T) {
	commit := encode(t, Commit{Point: block.Point{Seq: 1}})[headerSize:]
	flagged := bytes.Clone(commit)
	flagged[27] = 0x80
	reserved := bytes.Clone(commit)
	reserved[31] = 1
	run := encode(t, Run{Epoch: 1, Run: block.Run{Extent: block.Extent{Count: 1}, Codec: block.Zero}})[headerSize:]
	runFlag, runCodec := bytes.Clone(run), bytes.Clone(run)
	runFlag[31], runCodec[30] = 1, 9
	for name, b := range map[string][]byte{
		"type 0":           frame(0, 0, nil),
		"type 200":         frame(200, 0, nil),
		"reserved byte":    frame(TypeAlive, 1, nil),
		"unknown flag":     frame(TypeCommit, 0, flagged),
		"reserved field":   frame(TypeCommit, 0, reserved),
		"epoch 0":          frame(TypeCommit, 0, make([]byte, commitSize)),
		"flag of a run":    frame(TypeRun, 0, runFlag),
		"codec":            frame(TypeRun, 0, runCodec),
		"empty run":        frame(TypeRun, 0, make([]byte, runHeaderSize)),
		"payload of zeros": frame(TypeRun, 0, append(bytes.Clone(run), 1)),
		"no JSON":          frame(TypeHello, 0, []byte("hello")),
		"no session":       frame(TypeHello, 0, []byte(`{"server":"s","count":1}`)),
		"count 17":         frame(TypeHello, 0, []byte(`{"session":"`+strings.Repeat("0", 32)+`","count":17}`)),
		"index 1 of 1":     frame(TypeHello, 0, []byte(`{"session":"`+strings.Repeat("0", 32)+`","count":1,"index":1}`)),
	} {
		if m, err := NewConn(bytes.NewBuffer(b), nil).Read(); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: got %v, %v, want %v", name, m, err, ErrProtocol)
		}
	}
	if _, err := NewConn(bytes.NewBuffer(encode(t, Ack{1})), nil).Read(TypeHello); !errors.Is(err, ErrProtocol) {
		t.Errorf("a type that is not wanted: got %v", err)
	}
}

// TestConn_LengthIsCheckedBeforeMemory announces 4 GiB and more than a type's limit.
func TestConn_LengthIsCheckedBeforeMemory(t *testing.T) {
	for typ := TypeHello; int(typ) < len(kinds); typ++ {
		for _, n := range []uint32{uint32(kinds[typ].max) + 1, 1 << 31, 1<<32 - 1} {
			h := make([]byte, headerSize)
			binary.BigEndian.PutUint32(h, n)
			h[4] = byte(typ)
			got := testing.AllocsPerRun(1, func() {
				if _, err := NewConn(bytes.NewBuffer(h), nil).Read(); !errors.Is(err, ErrProtocol) {
					t.Errorf("%v of %d bytes: got %v", typ, n, err)
				}
			})
			if got > 20 {
				t.Errorf("%v of %d bytes: %v allocations", typ, n, got)
			}
		}
	}
}

func TestConn_Preface(t *testing.T) {
	var b bytes.Buffer
	if err := NewConn(&b, nil).WritePreface(); err != nil {
		t.Fatal(err)
	}
	good := b.Bytes()
	for name, c := range map[string]struct {
		at      int
		value   byte
		version bool
	}{"magic": {0, 'r', false}, "line end": {6, '\n', false}, "version": {9, Version + 1, true}, "reserved": {11, 1, false}} {
		bad := bytes.Clone(good)
		bad[c.at] = c.value
		err := NewConn(bytes.NewBuffer(bad), nil).ReadPreface()
		var version *VersionError
		if !errors.Is(err, ErrProtocol) || errors.As(err, &version) != c.version {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if err := NewConn(bytes.NewBuffer(bytes.Clone(good)), nil).ReadPreface(); err != nil {
		t.Error(err)
	}
}

// FuzzConn_Read: whatever is read must be written as the same message again,
// byte for byte where the format has one form only.
func FuzzConn_Read(f *testing.F) {
	for _, m := range samples() {
		b := encode(f, m)
		if len(b) < 64<<10 {
			f.Add(uint8(m.Type()), b[headerSize:])
		}
	}
	f.Fuzz(func(t *testing.T, typ uint8, body []byte) {
		b := frame(Type(typ), 0, body)
		m, err := NewConn(bytes.NewBuffer(b), nil).Read()
		if err != nil {
			if !errors.Is(err, ErrProtocol) {
				t.Fatalf("got %v, want %v", err, ErrProtocol)
			}
			return
		}
		again := encode(t, m)
		switch m.(type) {
		case Hello, Welcome, *RefusedError:
			n, err := NewConn(bytes.NewBuffer(again), nil).Read()
			if d := cmp.Diff(m, n, ignoreBuffer); err != nil || d != "" {
				t.Fatalf("%v: %v %s", m.Type(), err, d)
			}
		default:
			if !bytes.Equal(again, b) {
				t.Fatalf("%v: got %x, want %x", m.Type(), again, b)
			}
		}
	})
}

// FuzzConn_Stream reads arbitrary bytes to their end.
func FuzzConn_Stream(f *testing.F) {
	f.Add(encode(f, Ack{1}, Alive{}, Retract{2}))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := NewConn(bytes.NewBuffer(b), nil)
		for {
			m, err := c.Read()
			if err != nil {
				return
			}
			if r, ok := m.(Run); ok {
				r.Free()
			}
		}
	})
}
