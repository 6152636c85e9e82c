package api

import (
	"context"
	"maps"
	"slices"
	"strings"

	"rehost/awsapi"
	"rehost/awsapi/iam"
)

// maxTags is how many tags one thing may have.
const maxTags = 50

// tagged is old with the tags that a request brings, or why they are refused.
func tagged(old map[string]string, tags []iam.Tag) (map[string]string, error) {
	out := maps.Clone(old)
	if out == nil {
		out = map[string]string{}
	}
	seen := map[string]bool{}
	for _, t := range tags {
		lower := strings.ToLower(t.Key)
		switch {
		case seen[lower]:
			return nil, iam.InvalidInputException.Errorf("Duplicate tag keys found. Please note that Tag keys are case insensitive.")
		case strings.HasPrefix(lower, "aws:"):
			return nil, iam.InvalidInputException.Errorf("Tag keys that begin with aws: are reserved.")
		}
		seen[lower] = true
		for key := range out {
			if strings.ToLower(key) == lower {
				delete(out, key)
			}
		}
		out[t.Key] = t.Value
	}
	if len(out) > maxTags {
		return nil, iam.LimitExceededException.Errorf("The number of tags has reached the maximum limit.")
	}
	return out, nil
}

func untagged(old map[string]string, keys []string) map[string]string {
	out := maps.Clone(old)
	for _, key := range keys {
		delete(out, key)
	}
	return out
}

func tagList(tags map[string]string) []iam.Tag {
	var out []iam.Tag
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		out = append(out, iam.Tag{Key: key, Value: tags[key]})
	}
	return out
}

// mayTag asks for the right to tag what is made with tags.
func (a *api) mayTag(ctx context.Context, action, kind, path, name string, tags []iam.Tag) error {
	if len(tags) == 0 {
		return nil
	}
	return awsapi.Allowed(ctx, action, "arn:aws:iam::"+a.d.Account().ID+":"+kind+path+name, nil)
}
