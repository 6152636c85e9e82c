// Package audit keeps records of what was done in a log that shows whether
// somebody has changed it: in go records, out come files of chained lines, and
// a verdict on them.
//
// Each line carries a hash over the line before, and a message authentication
// code over that, so that no line can be changed, left out or moved unnoticed.
// docs/format/audit.md is the format, and says what cannot be noticed.
package audit
