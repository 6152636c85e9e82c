package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// pages collects what a call answers page by page; an empty list, not nil, if nothing.
func pages[T any](page func(token *string) (items []T, next string, err error)) ([]T, error) {
	all := []T{}
	for token := (*string)(nil); ; {
		items, next, err := page(token)
		if err != nil {
			return nil, err
		}
		all = append(all, items...)
		if next == "" {
			return all, nil
		}
		token = &next
	}
}

// printList prints items as JSON, or as a table with a row of each as it is now.
func printList[T any](out io.Writer, asJSON bool, items []T, header string, row func(T, time.Time) string) error {
	if asJSON {
		return json.NewEncoder(out).Encode(items)
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, header)
	for _, item := range items {
		fmt.Fprintln(t, row(item, time.Now()))
	}
	return t.Flush()
}

// tableRow is a line of a table. What is in it may be anybody's word.
func tableRow(cells ...string) string {
	for i, text := range cells {
		if text = strings.Trim(fmt.Sprintf("%q", text), `"`); text == "" {
			text = "-"
		}
		cells[i] = text
	}
	return strings.Join(cells, "\t")
}
