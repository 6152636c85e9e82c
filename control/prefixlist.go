package control

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"rehost/awsapi/ec2"
)

// A PrefixList is a list of addresses that rules can name instead of each of them.
type PrefixList struct {
	ID, Name string
	Entries  []PrefixEntry
}

// A PrefixEntry is one line of it.
type PrefixEntry struct {
	Prefix      netip.Prefix
	Description string
}

var listID = regexp.MustCompile(`^pl-[0-9a-f]{8,17}$`)

// ParsePrefixLists reads lists from a text: "[pl-… name]" begins a list, each line
// after it is a CIDR and what there is to say of it, # begins a comment.
//
//	[pl-0123456789abcdef0 offices]
//	192.0.2.0/24      London
//	2001:db8:1::/48   # both
func ParsePrefixLists(r io.Reader) (out []PrefixList, err error) {
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if head, ok := strings.CutPrefix(line, "["); ok {
			id, name, _ := strings.Cut(strings.TrimSuffix(head, "]"), " ")
			if !strings.HasSuffix(head, "]") || !listID.MatchString(id) {
				return nil, fmt.Errorf("line %d: a list begins with [pl-0123456789abcdef0 name]", n)
			}
			if slices.ContainsFunc(out, func(l PrefixList) bool { return l.ID == id }) {
				return nil, fmt.Errorf("line %d: list %s is there twice", n, id)
			}
			out = append(out, PrefixList{ID: id, Name: strings.TrimSpace(name)})
			continue
		}
		cidr, description, _ := strings.Cut(strings.ReplaceAll(line, "\t", " "), " ")
		p, err := netip.ParsePrefix(cidr)
		if err != nil || p.Addr().Is4In6() {
			return nil, fmt.Errorf("line %d: %.60q is no CIDR of IPv4 or IPv6, such as 192.0.2.0/24", n, cidr)
		}
		if len(out) == 0 {
			return nil, fmt.Errorf("line %d: before a list has begun with [pl-0123456789abcdef0 name]", n)
		}
		l := &out[len(out)-1]
		l.Entries = append(l.Entries, PrefixEntry{p.Masked(), strings.TrimSpace(description)})
	}
	return out, lines.Err()
}

// UsePrefixLists puts lists in the place of those that there are. It takes effect
// at once. Rules that name a list that is gone allow nobody.
func (c *Service) UsePrefixLists(lists []PrefixList) {
	c.mu.Lock()
	c.lists = lists
	c.mu.Unlock()
	c.changes.happened()
}

func (c *Service) prefixLists() []PrefixList {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lists
}

func (c *Service) prefixList(id string) (PrefixList, bool) {
	lists := c.prefixLists()
	i := slices.IndexFunc(lists, func(l PrefixList) bool { return l.ID == id })
	if i < 0 {
		return PrefixList{}, false
	}
	return lists[i], true
}

func (c *Service) knownList(id string) error {
	if _, ok := c.prefixList(id); !ok {
		return ec2.InvalidPrefixListIDNotFound.Errorf("The prefix list ID '%.100s' does not exist: lists come from the file of --prefix-lists", id)
	}
	return nil
}

// DescribeManagedPrefixLists implements the operation of EC2.
func (c *Service) DescribeManagedPrefixLists(_ context.Context, in *ec2.DescribeManagedPrefixListsRequest) (*ec2.DescribeManagedPrefixListsResult, error) {
	if err := dry(in.DryRun); err != nil {
		return nil, err
	}
	after, limit, err := c.groupPage("DescribeManagedPrefixLists", in.Filters, in.NextToken, in.MaxResults)
	if err != nil {
		return nil, err
	}
	for _, id := range in.PrefixListIds {
		if err := c.knownList(id); err != nil {
			return nil, err
		}
	}
	out := []ec2.ManagedPrefixList{}
	for _, l := range c.prefixLists() {
		if l.ID <= after || len(in.PrefixListIds) > 0 && !slices.Contains(in.PrefixListIds, l.ID) {
			continue
		}
		entries, version := int32(len(l.Entries)), int64(1)
		shown := ec2.ManagedPrefixList{PrefixListId: l.ID, PrefixListName: l.Name, PrefixListArn: c.groupARN(ec2.PrefixList, l.ID), OwnerId: c.opts.Account,
			State: ec2.PrefixListStateCreateComplete, MaxEntries: &entries, Version: &version, AddressFamily: l.family(), Tags: []ec2.Tag{}}
		ok, err := pass(in.Filters, listFilters, shown, nil)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, shown)
		}
	}
	slices.SortFunc(out, func(a, b ec2.ManagedPrefixList) int { return strings.Compare(a.PrefixListId, b.PrefixListId) })
	page, token := next(c.pager, "DescribeManagedPrefixLists", in.Filters, out, limit, func(l ec2.ManagedPrefixList) string { return l.PrefixListId })
	return &ec2.DescribeManagedPrefixListsResult{PrefixLists: page, NextToken: token}, nil
}

// family is IPv4 or IPv6, or "" of a list of both, which EC2 does not have.
func (l PrefixList) family() string {
	four := slices.ContainsFunc(l.Entries, func(e PrefixEntry) bool { return e.Prefix.Addr().Is4() })
	six := slices.ContainsFunc(l.Entries, func(e PrefixEntry) bool { return e.Prefix.Addr().Is6() })
	switch {
	case four && !six:
		return "IPv4"
	case six && !four:
		return "IPv6"
	}
	return ""
}

var listFilters = map[string]func(ec2.ManagedPrefixList) []string{
	"owner-id":         func(l ec2.ManagedPrefixList) []string { return []string{l.OwnerId} },
	"prefix-list-id":   func(l ec2.ManagedPrefixList) []string { return []string{l.PrefixListId} },
	"prefix-list-name": func(l ec2.ManagedPrefixList) []string { return []string{l.PrefixListName} },
}

// GetManagedPrefixListEntries implements the operation of EC2.
func (c *Service) GetManagedPrefixListEntries(_ context.Context, in *ec2.GetManagedPrefixListEntriesRequest) (*ec2.GetManagedPrefixListEntriesResult, error) {
	if err := dry(in.DryRun); err != nil {
		return nil, err
	}
	after, limit, err := c.groupPage("GetManagedPrefixListEntries", in.PrefixListId, in.NextToken, in.MaxResults)
	if err != nil {
		return nil, err
	}
	l, ok := c.prefixList(in.PrefixListId)
	if !ok {
		return nil, c.knownList(in.PrefixListId)
	}
	out := []ec2.PrefixListEntry{}
	for _, e := range l.Entries {
		if e.Prefix.String() > after {
			out = append(out, ec2.PrefixListEntry{Cidr: e.Prefix.String(), Description: e.Description})
		}
	}
	slices.SortFunc(out, func(a, b ec2.PrefixListEntry) int { return strings.Compare(a.Cidr, b.Cidr) })
	page, token := next(c.pager, "GetManagedPrefixListEntries", in.PrefixListId, out, limit, func(e ec2.PrefixListEntry) string { return e.Cidr })
	return &ec2.GetManagedPrefixListEntriesResult{Entries: page, NextToken: token}, nil
}
