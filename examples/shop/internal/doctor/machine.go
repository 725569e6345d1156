// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// Folder checks that a data folder can be written to, and that a database in it works: its locks keep others out,
// and its log is shared memory, which not every network file system has. A folder that is not there yet is
// checked where it would be made.
func Folder(dir string) Check {
	return One("data-folder", func(ctx context.Context) Finding {
		at, made, err := existing(dir)
		if err != nil {
			return Wrong("choose another --data", "%s: %v", dir, cause(err))
		}
		probe, err := os.MkdirTemp(at, ".doctor-")
		if err != nil {
			return Wrong("make it yours and writable, or choose another --data", "%s cannot be written to: %v", at, cause(err))
		}
		defer func() { _ = os.RemoveAll(probe) }()
		if err := database(ctx, filepath.Join(probe, "probe.db")); err != nil {
			return Wrong("choose a folder on a local file system as --data", "a database in %s does not work: %v", at, err)
		}
		if err := locks(filepath.Join(probe, "lock")); err != nil {
			return Wrong("choose a folder on a local file system as --data", "locks in %s do not work: %v", at, err)
		}
		if !made {
			return Good("%s is not there yet, and can be made", dir)
		}
		return Good("%s is writable, and databases and locks in it work", dir)
	})
}

// existing returns dir, or the folder in which it would be made.
func existing(dir string) (at string, made bool, err error) {
	if at, err = filepath.Abs(dir); err != nil {
		return "", false, err
	}
	for made = true; ; at, made = filepath.Dir(at), false {
		info, err := os.Stat(at)
		switch {
		case err == nil && !info.IsDir():
			return "", false, fmt.Errorf("%s is no folder", at)
		case err == nil || !errors.Is(err, fs.ErrNotExist) || at == filepath.Dir(at):
			return at, made, err
		}
	}
}

// cause is an error without the path that it is about.
func cause(err error) error {
	if e := (*fs.PathError)(nil); errors.As(err, &e) {
		return e.Err
	}
	return err
}

// database tries whether one connection to a database keeps another out and sees what it has written.
func database(ctx context.Context, path string) error {
	one, err := platform.OpenSQLite(path)
	if err != nil {
		return err
	}
	defer func() { _ = one.Close() }()
	if _, err := one.ExecContext(ctx, `CREATE TABLE probe (n INTEGER)`); err != nil {
		return err
	}
	var mode string
	if err := one.QueryRowContext(ctx, `PRAGMA journal_mode`).Scan(&mode); err != nil || mode != "wal" {
		return errors.Join(fmt.Errorf("its journal is %q, want a write-ahead log", mode), err)
	}
	other, err := platform.OpenSQLite(path)
	if err != nil {
		return err
	}
	defer func() { _ = other.Close() }()
	if _, err := other.ExecContext(ctx, `PRAGMA busy_timeout = 0`); err != nil {
		return err
	}
	tx, err := one.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	if _, err := tx.ExecContext(ctx, `INSERT INTO probe VALUES (1)`); err != nil {
		return err
	}
	if _, err := other.ExecContext(ctx, `INSERT INTO probe VALUES (2)`); err == nil {
		return errors.New("two write to it at once")
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	var n int
	if err := other.QueryRowContext(ctx, `SELECT COUNT(*) FROM probe`).Scan(&n); err != nil || n != 1 {
		return errors.Join(fmt.Errorf("of what one has written another sees %d rows, want 1", n), err)
	}
	return nil
}

// What is little room, and what is none.
const (
	littleSpace = 1 << 30
	noSpace     = 64 << 20
)

// Space checks how much room there is where dir is, or would be made.
func Space(dir string) Check {
	return Check{"disk-space", func(context.Context) []Finding {
		at, _, err := existing(dir)
		if err != nil {
			return nil // which another check has to say
		}
		free, err := freeSpace(at)
		if errors.Is(err, errors.ErrUnsupported) {
			return nil
		}
		if err != nil {
			return []Finding{Doubt("", "how much there is at %s cannot be seen: %v", at, err)}
		}
		return []Finding{room(free)}
	}}
}

func room(free uint64) Finding {
	const do = "make room, or choose another --data"
	found := fmt.Sprintf("%d MiB are free", free>>20)
	switch {
	case free < noSpace:
		return Wrong(do, "%s, want %d or more", found, noSpace>>20)
	case free < littleSpace:
		return Doubt(do, "%s, want %d or more: an order takes about 10 KiB, for ever", found, littleSpace>>20)
	}
	return Good("%s", found)
}

// What is little for a process with a hundred connections, their other ends and some files, and what is too little
// to open.
const (
	fewFiles = 1024
	noFiles  = 256
)

// OpenFiles checks how many files and connections a process may have open.
func OpenFiles() Check {
	return Check{"open-files", func(context.Context) []Finding {
		n, err := openFiles()
		if err != nil {
			return nil // there is no such limit here
		}
		const do = "raise it: ulimit -n 4096, LimitNOFILE=4096 of systemd"
		switch {
		case n < noFiles:
			return []Finding{Wrong(do, "a process may have %d open, want %d or more", n, fewFiles)}
		case n < fewFiles:
			return []Finding{Doubt(do, "a process may have %d open, want %d or more", n, fewFiles)}
		}
		return []Finding{Good("a process may have %d open", n)}
	}}
}

// Between two clocks, what is noticed and what tokens do not bear.
const (
	someSkew = 5 * time.Second
	muchSkew = time.Minute
)

// Skew judges how far our clock is ahead of another, or behind it if that is negative. What is
// taken to look must be no part of it.
func Skew(of string, ahead time.Duration) Finding {
	const do = "keep all clocks by NTP: tokens and logs go by them"
	how := "ahead of"
	if ahead < 0 {
		how = "behind"
	}
	switch d := ahead.Abs().Round(time.Millisecond); {
	case d > muchSkew:
		return Wrong(do, "this machine's clock is %v %s that of %s", d, how, of)
	case d > someSkew:
		return Doubt(do, "this machine's clock is %v %s that of %s", d, how, of)
	}
	return Good("this machine's clock is that of %s", of)
}

// Since checks that the clock is not behind what was written to a folder already.
func Since(dir, pattern string) Check {
	return Check{"clock", func(context.Context) []Finding {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(files) == 0 {
			return nil
		}
		now, last := time.Now(), time.Time{}
		for _, path := range files {
			if info, err := os.Stat(path); err == nil && info.ModTime().After(last) {
				last = info.ModTime()
			}
		}
		if ahead := last.Sub(now); ahead > someSkew {
			return []Finding{Doubt("set the clock: until it has caught up, what is due by the data's own clock stands still",
				"the data was last changed %v from now", ahead.Round(time.Second))}
		}
		return []Finding{Good("the data was last changed before now, at %s", last.Format(time.DateTime))}
	}}
}

// Shop is a shop that answers somewhere.
type Shop struct {
	URL     string
	Version string
	Ready   bool
}

// program is how a shop's metrics say which program they are of.
var program = regexp.MustCompile(`^go_build_info\{.*path="github\.com/dovetail-go/dovetail/examples",version="([^"]*)"`)

// Find asks what listens at an address, host:port, by TLS unless that is nil. It returns nil if that is no shop.
func Find(ctx context.Context, addr string, secure *tls.Config) *Shop {
	s := &Shop{URL: "http://" + reachable(addr)}
	if secure != nil {
		s.URL = "https://" + reachable(addr)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: secure, DisableKeepAlives: true}}
	ready, err := get(ctx, client, s.URL+"/readyz")
	if err != nil {
		return nil
	}
	_ = ready.Body.Close()
	s.Ready = ready.StatusCode == http.StatusOK
	metrics, err := get(ctx, client, s.URL+"/metrics")
	if err != nil {
		return nil
	}
	defer func() { _ = metrics.Body.Close() }()
	for lines := bufio.NewScanner(io.LimitReader(metrics.Body, 1<<20)); lines.Scan(); {
		if is := program.FindStringSubmatch(lines.Text()); is != nil {
			s.Version = is[1]
			return s
		}
	}
	return nil
}

func get(ctx context.Context, client *http.Client, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	return client.Do(req)
}

// reachable is addr as it is reached from this machine.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// Listen checks that an address is free, or that it is our shop that has it.
func Listen(addr string, secure *tls.Config) Check {
	return One("listen", func(ctx context.Context) Finding {
		ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
		if err == nil {
			return Good("%s is free", ln.Addr()).closing(ln)
		}
		if !isInUse(err) {
			return Wrong("choose another --listen", "%s: %v", addr, err)
		}
		shop := Find(ctx, addr, secure)
		switch {
		case shop == nil:
			return Wrong("end what listens there, or choose another --listen", "%s is taken, and what answers there is no shop", addr)
		case !shop.Ready:
			return Doubt("wait, or look at its log", "a shop listens at %s, version %s, and is not ready", shop.URL, shop.Version)
		}
		return Good("a shop answers at %s, version %s", shop.URL, shop.Version)
	})
}

// closing closes what was opened to look.
func (f Finding) closing(c io.Closer) Finding {
	_ = c.Close()
	return f
}
