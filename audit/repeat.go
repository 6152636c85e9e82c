package audit

import (
	"crypto/sha256"
	"encoding/json"
	"maps"
	"slices"
	"time"
)

const (
	// repeatWindow is how long repeated calls are counted before a record says how
	// many there were: what a crash can cost.
	repeatWindow = 10 * time.Minute
	// maxRepeats is of how many calls the repetitions are counted at a time; of
	// others each is recorded.
	maxRepeats = 1 << 16
)

// Repeated is in the record of the last of several calls that differed in nothing
// but when they came. It speaks of those since the record before it, this call included.
type Repeated struct {
	Calls int       `json:"calls"`
	First time.Time `json:"first"` // to the second
	Last  time.Time `json:"last"`
}

// A stream is what one caller does by one name.
type stream struct{ who, source, event string }

func streamOf(r *Record) stream {
	return stream{r.UserIdentity.PrincipalID, r.EventSource, r.EventName}
}

// A likeness is what records have in common that are each other's repetition.
type likeness [sha256.Size]byte

// A repeat is a call whose first record is in the log, and what has come since.
type repeat struct {
	last  Record
	first time.Time
	calls int
	until time.Time // when they are recorded
}

// foldable is whether a record may stand for others like it. What was denied, refused
// or went wrong is what somebody will look for one by one.
func foldable(r *Record) bool {
	return r.EventType == APICall && r.ErrorCode == "" && r.AdditionalEventData != nil && r.AdditionalEventData.Decision == "allowed"
}

// likenessOf is the record without what differs each time. What was asked for is
// part of it; what was told, such as a measurement, is not.
func likenessOf(r Record) (likeness, error) {
	data := *r.AdditionalEventData
	data.TookMicroseconds = 0
	r.EventTime, r.RequestID, r.AdditionalEventData, r.ResponseElements = time.Time{}, "", &data, nil
	if !r.ReadOnly {
		r.RequestParameters = nil
	}
	text, err := json.Marshal(r)
	return sha256.Sum256(text), err
}

// Repeat is Append for a call that has changed nothing that counts, of a caller
// that makes it again and again. The first is written like any other; those like it
// are counted, and written as one record with [Repeated] after ten minutes, before
// the next record of [Log.Append] of the same caller and name, and by Close. What was
// not allowed or has failed is written one by one, as is everything while the log
// cannot be written.
func (l *Log) Repeat(r Record) error {
	if !l.foldable(&r) {
		return l.Append(r)
	}
	now := l.opts.Now()
	if r.EventTime.IsZero() {
		r.EventTime = now
	}
	alike, err := likenessOf(r)
	if err != nil {
		return l.Append(r) // which leaves out what cannot be encoded
	}
	in := streamOf(&r)
	if l.counted(in, alike, r, now) {
		return nil
	}
	text, err := l.encode(r)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.add(text); err != nil {
		return err
	}
	if l.repeating < maxRepeats && l.repeats[in][alike] == nil {
		if l.repeats[in] == nil {
			l.repeats[in] = map[likeness]*repeat{}
		}
		l.repeats[in][alike] = &repeat{until: now.Add(repeatWindow)}
		l.repeating++
	}
	return nil
}

// counted is whether the call is a repetition of which it is enough to know the number.
func (l *Log) counted(in stream, alike likeness, r Record, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if seen := l.repeats[in][alike]; seen != nil && !now.Before(seen.until) {
		l.sum(in, alike, now)
	}
	seen := l.repeats[in][alike]
	if seen == nil || l.failure != nil || l.f == nil {
		return false
	}
	// Calls that are made at once come here in any order.
	if seen.calls == 0 || r.EventTime.Before(seen.first) {
		seen.first = r.EventTime
	}
	if seen.calls == 0 || r.EventTime.After(seen.last.EventTime) {
		seen.last = r
	}
	seen.calls++
	return true
}

// sum writes how often a call was repeated, and goes on counting; what was not
// repeated is forgotten, so that the next is a first one.
func (l *Log) sum(in stream, alike likeness, now time.Time) {
	seen := l.repeats[in][alike]
	if seen.calls == 0 {
		l.forget(in, alike)
		return
	}
	l.tell(seen)
	*seen = repeat{until: now.Add(repeatWindow)}
}

func (l *Log) forget(in stream, alike likeness) {
	delete(l.repeats[in], alike)
	if l.repeating--; len(l.repeats[in]) == 0 {
		delete(l.repeats, in)
	}
}

// tell writes the record of what was counted.
func (l *Log) tell(seen *repeat) {
	if seen.calls == 0 {
		return
	}
	r, data := seen.last, *seen.last.AdditionalEventData
	data.Repeated = &Repeated{Calls: seen.calls, First: seen.first.UTC().Truncate(time.Second), Last: r.EventTime.UTC().Truncate(time.Second)}
	r.AdditionalEventData = &data
	if text, err := l.encode(r); err == nil { // as it was for the first of them
		_ = l.add(text) // a failure was logged, and the record waits
	}
}

// end writes what was counted of a stream, in the order in which it came, and
// forgets it: the next call is a first one.
func (l *Log) end(in stream) {
	all := l.repeats[in]
	for _, alike := range slices.SortedFunc(maps.Keys(all), func(a, b likeness) int { return all[a].last.EventTime.Compare(all[b].last.EventTime) }) {
		l.tell(all[alike])
		l.forget(in, alike)
	}
}

// sumDue writes what was counted for long enough.
func (l *Log) sumDue() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.opts.Now()
	for in, all := range l.repeats {
		for alike, seen := range all {
			if !now.Before(seen.until) {
				l.sum(in, alike, now)
			}
		}
	}
}

// endAll writes everything that was counted.
func (l *Log) endAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for in := range l.repeats {
		l.end(in)
	}
}
