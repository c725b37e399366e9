// Decompresses one gzip member from standard input to standard output.
//
// Go's decoder is strict: it rejects incomplete codes, distances beyond the start, wrong checksums
// and wrong lengths. This program also rejects data after the member.
package main

import (
	"bufio"
	"compress/gzip"
	"io"
	"log"
	"os"
)

func main() {
	input := bufio.NewReader(os.Stdin)
	reader, err := gzip.NewReader(input)
	if err != nil {
		log.Fatal(err)
	}
	reader.Multistream(false)
	if _, err := io.Copy(os.Stdout, reader); err != nil {
		log.Fatal(err)
	}
	if _, err := input.ReadByte(); err != io.EOF {
		log.Fatal("data after the member")
	}
}
