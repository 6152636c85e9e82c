package release

import (
	"cmp"
	"fmt"
	"regexp"
	"strconv"
)

// A Version orders releases: three numbers, and for what comes before a release
// a text.
type Version struct {
	Major, Minor, Patch int
	Pre                 string // "rc1"; "" is the release itself
}

var versionForm = regexp.MustCompile(`^(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})\.(0|[1-9][0-9]{0,5})(?:-([0-9A-Za-z.]{1,32}))?$`)

// ParseVersion reads what [Version.String] writes, such as 1.2.3 or 1.2.3-rc1.
func ParseVersion(text string) (v Version, err error) {
	w := versionForm.FindStringSubmatch(text)
	if w == nil {
		return v, fmt.Errorf("%q is not a version like 1.2.3", text)
	}
	for i, to := range []*int{&v.Major, &v.Minor, &v.Patch} {
		if *to, err = strconv.Atoi(w[i+1]); err != nil {
			return Version{}, err
		}
	}
	v.Pre = w[4]
	return v, nil
}

// String is the one text form of a version.
func (v Version) String() string {
	text := fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch)
	if v.Pre != "" {
		text += "-" + v.Pre
	}
	return text
}

// Compare is negative if v is older than o, and 0 if they are the same. What
// comes before a release is older than it; among those the texts decide.
func (v Version) Compare(o Version) int {
	return cmp.Or(cmp.Compare(v.Major, o.Major), cmp.Compare(v.Minor, o.Minor), cmp.Compare(v.Patch, o.Patch), v.comparePre(o))
}

func (v Version) comparePre(o Version) int {
	switch {
	case v.Pre == o.Pre:
		return 0
	case v.Pre == "":
		return 1
	case o.Pre == "":
		return -1
	}
	return cmp.Compare(v.Pre, o.Pre)
}
