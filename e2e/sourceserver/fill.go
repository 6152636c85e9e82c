package main

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
)

var words = []string{"GET", "POST", "/index.html", "/api/orders", "/static/logo.png", "200", "304", "404", "500",
	"connection", "closed", "timeout", "user", "order", "shipped", "invoice", "paid", "stock", "updated", "session"}

// fill writes about mib MiB into dir: two thirds text of the kind that logs and
// tables are made of, one third what does not compress, in files of many sizes.
// The content is the same each time.
func fill(dir string, mib int) error {
	rnd := rand.New(rand.NewPCG(1, uint64(mib)))
	noise := rand.NewChaCha8([32]byte{7})
	for i, left := 0, int64(mib)<<20; left > 0; i++ {
		size := min(left, 1<<10<<rnd.IntN(13)+rnd.Int64N(4096)) // 1 KiB to 4 MiB
		kind, content := "log", func(w io.Writer) error { return text(w, rnd, size) }
		if i%3 == 2 {
			kind, content = "bin", func(w io.Writer) error { _, err := io.CopyN(w, noise, size); return err }
		}
		path := filepath.Join(dir, fmt.Sprintf("%02d", i%16), fmt.Sprintf("%s-%05d.%s", words[rnd.IntN(9)+11], i, kind))
		if err := write(path, content); err != nil {
			return err
		}
		left -= size
	}
	return nil
}

func write(path string, content func(io.Writer) error) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	if err := content(w); err != nil {
		f.Close()
		return err
	}
	if err := w.Flush(); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

func text(w io.Writer, rnd *rand.Rand, size int64) error {
	for n := int64(0); n < size; {
		line := fmt.Sprintf("2026-%02d-%02d %02d:%02d %s %s %s id=%d\n", 1+rnd.IntN(12), 1+rnd.IntN(28), rnd.IntN(24), rnd.IntN(60),
			words[rnd.IntN(len(words))], words[rnd.IntN(len(words))], words[rnd.IntN(len(words))], rnd.IntN(1e6))
		line = line[:min(int64(len(line)), size-n)]
		if _, err := io.WriteString(w, line); err != nil {
			return err
		}
		n += int64(len(line))
	}
	return nil
}
