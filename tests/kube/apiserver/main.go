// Command apiserver is a real Kubernetes API server with its own etcd in one process, on loopback, for tests.
//
// It keeps everything in one folder: keys and certificates (made on first use), the data, a kubeconfig of an
// administrator and, once /readyz says so, the file `ready` with the server's address. Started again on the same
// folder it goes on where it was.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// The time in which an end that was asked for must be done; past it the process just exits.
const endsWithin = 10 * time.Second

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "apiserver:", err)
		os.Exit(1)
	}
}

func run() error {
	state := flag.String("state", "", "the `folder` to keep everything in; made if there is none")
	address := flag.String("address", "127.0.0.1:0", "the loopback `address` to listen on")
	controllers := flag.Bool("controllers", true, "run the controllers that objects need to come to life")
	piped := flag.Bool("end-with-stdin", false, "end when standard input does, so that no server outlives its test")
	flag.Parse()
	if *state == "" || flag.NArg() > 0 {
		flag.Usage()
		return errors.New("`-state` must be given, and no arguments")
	}
	listener, err := listen(*address)
	if err != nil {
		return err
	}
	folder, err := prepare(*state)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if *piped {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			stop()
		}()
	}
	context.AfterFunc(ctx, func() { time.AfterFunc(endsWithin, func() { os.Exit(3) }) })
	return serve(ctx, listener, folder, *controllers)
}

// listen opens the port at once, so that no one else can take it. Anything but loopback is refused: the keys lie in a
// folder for tests.
func listen(address string) (net.Listener, error) {
	parsed, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, err
	}
	if !parsed.IP.IsLoopback() {
		return nil, fmt.Errorf("`%s` isn't a loopback address", address)
	}
	return net.ListenTCP("tcp", parsed)
}

// prepare makes the folder, goes there and takes it for this process alone, until it ends.
func prepare(state string) (string, error) {
	folder, err := filepath.Abs(state)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return "", err
	}
	// etcd's socket is named relative to here: the names of sockets are short.
	if err := os.Chdir(folder); err != nil {
		return "", err
	}
	lock, err := syscall.Open("lock", syscall.O_CREAT|syscall.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return "", err
	}
	if err := syscall.Flock(lock, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return "", fmt.Errorf("another server runs in `%s`: %w", folder, err)
	}
	if err := os.Remove(readyFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	return folder, nil
}
