package policy

import (
	"cmp"
	"fmt"
	"strings"
)

// A decimal is a number as a policy writes it, compared exactly: as a float
// two identifiers beyond 2^53 could pass for one.
type decimal struct {
	negative          bool
	integer, fraction string // digits, without the zeros that do not count
}

func parseDecimal(s string) (d decimal, err error) {
	digits, negative := strings.CutPrefix(s, "-")
	digits = strings.TrimPrefix(digits, "+")
	integer, fraction, point := strings.Cut(digits, ".")
	const figures = "0123456789"
	if integer == "" || strings.Trim(integer, figures) != "" || strings.Trim(fraction, figures) != "" || point && fraction == "" || negative && s[1] == '+' {
		return d, fmt.Errorf("%q is not a number", s)
	}
	d = decimal{negative, strings.TrimLeft(integer, "0"), strings.TrimRight(fraction, "0")}
	if d.integer == "" && d.fraction == "" {
		d.negative = false
	}
	return d, nil
}

func (d decimal) compare(e decimal) int {
	switch {
	case d.negative != e.negative && d.negative:
		return -1
	case d.negative != e.negative:
		return 1
	case d.negative:
		d, e = e, d
	}
	return cmp.Or(cmp.Compare(len(d.integer), len(e.integer)), cmp.Compare(d.integer, e.integer), cmp.Compare(d.fraction, e.fraction))
}
