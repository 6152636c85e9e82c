// Command generate turns a service model into Go: structures, their
// validation, error types and the table of operations.
//
//	model.json (rest-json, query or ec2, botocore's form) -> *_gen.go beside it
//
// Its output depends on the model alone, so that a second run changes nothing.
//
// How members become fields:
//
//   - a required member is a value; a required structure is a pointer, so that
//     its absence can be told;
//   - an optional number or boolean is a pointer; so is an optional string of a
//     shape that requests can hold, because there "" and absence differ;
//   - an enum is a string type of its own, where "" means absent;
//   - a list or map that is nil is left out, an empty one is sent;
//   - a structure is a pointer, except as an element of a list or map;
//   - a sensitive shape is a type that prints as redacted.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	path := flag.String("model", "model.json", "service model to read")
	pkg := flag.String("package", "", "name of the package to write")
	dir := flag.String("dir", ".", "directory to write to")
	flag.Parse()
	if err := run(*path, *pkg, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}

func run(path, pkg, dir string) error {
	files, err := generate(path, pkg)
	if err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// generate returns the generated files by name.
func generate(path, pkg string) (map[string][]byte, error) {
	m, err := readModel(path)
	if err != nil {
		return nil, err
	}
	w := &writer{model: m, pkg: pkg, files: map[string]*file{}}
	w.shapes()
	if m.Metadata.query() {
		w.faults()
	} else {
		w.exceptions()
	}
	w.validation()
	w.operations()
	out := map[string][]byte{}
	for name, f := range w.files {
		text, err := f.source(pkg)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		out[name] = text
	}
	return out, nil
}
