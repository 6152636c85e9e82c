package identity

import (
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

var tagForm = regexp.MustCompile(`^[\p{L}\p{Z}\p{N}_.:/=+\-@]*$`)

// tag gives the session the tags that are asked for, and those that the
// caller's session hands on, which nobody can change.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/id_session-tags.html
func (c *claims) tag(tags []Tag, transitive []string, caller *claims) error {
	if err := checkTags(tags); err != nil {
		return err
	}
	all := map[string]string{}
	for _, t := range tags {
		all[t.Key] = t.Value
	}
	for _, key := range transitive {
		if !slices.ContainsFunc(tags, func(t Tag) bool { return strings.EqualFold(t.Key, key) }) {
			return validation("The specified transitive tag key must be included in the requested tags.")
		}
		if !slices.ContainsFunc(c.Transitive, func(k string) bool { return strings.EqualFold(k, key) }) {
			c.Transitive = append(c.Transitive, key)
		}
	}
	if caller != nil && caller.Kind == RolePrincipal {
		for _, key := range caller.Transitive {
			if taken(all, key) {
				return validation("One of the specified transitive tag keys can't be set because it conflicts with a transitive tag key from the calling session.")
			}
			for name, value := range caller.Tags {
				if strings.EqualFold(name, key) {
					all[name] = value
				}
			}
			c.Transitive = append(c.Transitive, key)
		}
	}
	if len(all) > maxSessionTags {
		return tooManyTags()
	}
	if len(all) > 0 {
		c.Tags = all
	}
	return nil
}

func tooManyTags() error {
	return validation("1 validation error detected: Value at 'tags' failed to satisfy constraint: Member must have length less than or equal to %d", maxSessionTags)
}

func checkTags(tags []Tag) error {
	if len(tags) > maxSessionTags {
		return tooManyTags()
	}
	seen := map[string]bool{}
	for _, t := range tags {
		n := utf8.RuneCountInString(t.Key)
		switch {
		case n == 0 || n > maxSessionTagKey || !tagForm.MatchString(t.Key):
			return validation("Tag key: want 1 to %d of letters, digits, spaces and _.:/=+-@", maxSessionTagKey)
		case utf8.RuneCountInString(t.Value) > maxSessionTagText || !tagForm.MatchString(t.Value):
			return validation("Tag value of %q: want up to %d of letters, digits, spaces and _.:/=+-@", t.Key, maxSessionTagText)
		case strings.HasPrefix(strings.ToLower(t.Key), "aws:"), strings.HasPrefix(strings.ToLower(t.Key), "rehost:"): // the latter limit keys
			return validation("Tag key %q: keys that begin with aws: or rehost: are not yours to set", t.Key)
		case seen[strings.ToLower(t.Key)]:
			return validation("Duplicate tag keys found. Please note that Tag keys are case insensitive.")
		}
		seen[strings.ToLower(t.Key)] = true
	}
	return nil
}
