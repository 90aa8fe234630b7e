// Command tessera appends to a Tessera log on POSIX files for a while, from so many writers at once, and writes how many
// entries became durable and how long each took, as one JSON object: {"appends": …, "seconds": …, "p50_ms": …, "p99_ms": …}.
//
// A writer gives an entry, waits for its index, and gives the next one. Batches and checkpoints are those of Tessera's own
// POSIX server (cmd/conformance/posix).
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"log"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
)

type result struct {
	Appends int     `json:"appends"`
	Seconds float64 `json:"seconds"`
	P50     float64 `json:"p50_ms"`
	P99     float64 `json:"p99_ms"`
}

func main() {
	folder := flag.String("folder", "", "where the log is written")
	writers := flag.Int("writers", 64, "entries under way at once")
	size := flag.Int("size", 600, "bytes of an entry")
	span := flag.Duration("for", 5*time.Second, "how long to write")
	flag.Parse()
	if err := run(*folder, *writers, *size, *span); err != nil {
		log.Fatal(err)
	}
}

func run(folder string, writers, size int, span time.Duration) error {
	ctx := context.Background()
	driver, err := posix.New(ctx, posix.Config{Path: folder})
	if err != nil {
		return err
	}
	secret, _, err := note.GenerateKey(rand.Reader, "bench.test/tessera")
	if err != nil {
		return err
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		return err
	}
	options := tessera.NewAppendOptions().
		WithCheckpointSigner(signer).
		WithCheckpointInterval(time.Second).
		WithBatching(256, time.Second)
	appender, shutdown, _, err := tessera.NewAppender(ctx, driver, options)
	if err != nil {
		return err
	}
	began := time.Now()
	times, err := write(ctx, appender, writers, size, began.Add(span))
	seconds := time.Since(began).Seconds()
	if err != nil {
		return err
	}
	if err := shutdown(ctx); err != nil {
		return err
	}
	slices.Sort(times)
	at := func(part float64) float64 {
		return times[min(len(times)-1, int(float64(len(times))*part))].Seconds() * 1000
	}
	return json.NewEncoder(os.Stdout).Encode(result{len(times), seconds, at(0.5), at(0.99)})
}

// write appends until the time is over; answers how long each entry took.
func write(
	ctx context.Context, appender *tessera.Appender, writers, size int, until time.Time,
) ([]time.Duration, error) {
	var lock sync.Mutex
	var times []time.Duration
	var failed error
	var all sync.WaitGroup
	for range writers {
		all.Add(1)
		go func() {
			defer all.Done()
			var own []time.Duration
			var err error
			entry := make([]byte, size)
			for err == nil && time.Now().Before(until) {
				if _, err = rand.Read(entry); err != nil {
					break
				}
				began := time.Now()
				_, err = appender.Add(ctx, tessera.NewEntry(slices.Clone(entry)))()
				own = append(own, time.Since(began))
			}
			lock.Lock()
			defer lock.Unlock()
			times = append(times, own...)
			if err != nil {
				failed = err
			}
		}()
	}
	all.Wait()
	return times, failed
}
