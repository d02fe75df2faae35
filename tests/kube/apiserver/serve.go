package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/server/v3/embed"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"
)

const (
	// The server's URL; there only while it is ready.
	readyFile = "ready"
	// For administrators (the group `system:masters`).
	kubeconfigFile = "kubeconfig"
	// Tokens of service accounts are issued in this name.
	issuer = "https://kubernetes.default.svc.cluster.local"
	// etcd's socket, in the state folder. No TCP: others on the machine have no business there.
	etcdSocket = "unix://etcd.sock"
	// How long it may take from here to /readyz, on a machine under load.
	readyWithin = 3 * time.Minute
)

// serve runs etcd and the API server until the context ends.
func serve(ctx context.Context, listener net.Listener, folder string, controllers bool) error {
	files, err := makeFiles()
	if err != nil {
		return err
	}
	address := "https://" + listener.Addr().String()
	if err := writeKubeconfig(files, address); err != nil {
		return err
	}
	etcd, err := startEtcd()
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	defer etcd.Close()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		if err, failed := <-etcd.Err(); failed {
			cancel(fmt.Errorf("etcd: %w", err))
		}
	}()
	go func() {
		if err := announce(ctx, folder, address, controllers); err != nil {
			cancel(err)
		}
	}()
	defer os.Remove(readyFile)
	if err := runServer(ctx, listener, files); err != nil {
		return err
	}
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func startEtcd() (*embed.Etcd, error) {
	config := embed.NewConfig()
	config.Dir = "etcd"
	// Its orderly end logs errors.
	config.LogLevel = "fatal"
	// What a power cut loses is only a test's.
	config.UnsafeNoFsync = true
	socket, err := embedURL(etcdSocket)
	if err != nil {
		return nil, err
	}
	// There are no peers. What it advertises stays at its default, which nobody asks for.
	peer, err := embedURL("unix://peer.sock")
	if err != nil {
		return nil, err
	}
	config.ListenClientUrls, config.ListenPeerUrls = socket, peer
	for _, stale := range []string{"etcd.sock", "peer.sock"} {
		if err := os.Remove(stale); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return nil, err
	}
	select {
	case <-etcd.Server.ReadyNotify():
		return etcd, nil
	case <-time.After(readyWithin):
		etcd.Close()
		return nil, errors.New("not ready in time")
	}
}

// runServer is what kube-apiserver's own command does, with flags as of an ordinary cluster, on an open listener.
func runServer(ctx context.Context, listener net.Listener, files files) error {
	run := options.NewServerRunOptions()
	run.SecureServing.Listener = listener
	run.SecureServing.BindPort = listener.Addr().(*net.TCPAddr).Port
	flags := pflag.NewFlagSet("kube-apiserver", pflag.ContinueOnError)
	for _, set := range run.Flags().FlagSets {
		flags.AddFlagSet(set)
	}
	if err := flags.Parse([]string{
		"--advertise-address=127.0.0.1",
		"--allow-privileged=true",
		"--authorization-mode=Node,RBAC",
		"--bind-address=127.0.0.1",
		"--client-ca-file=" + files.authority,
		// The endpoints of `default/kubernetes` can't be a loopback address.
		"--endpoint-reconciler-type=none",
		"--etcd-servers=" + etcdSocket,
		"--service-account-issuer=" + issuer,
		"--service-account-key-file=" + files.tokens,
		"--service-account-signing-key-file=" + files.tokens,
		"--service-cluster-ip-range=10.96.0.0/16",
		"--tls-cert-file=" + files.server.certificate,
		"--tls-private-key-file=" + files.server.key,
	}); err != nil {
		return err
	}
	components := run.GenericServerRunOptions.ComponentGlobalsRegistry
	if err := components.Set(); err != nil {
		return err
	}
	rest.SetDefaultWarningHandler(rest.NoWarnings{})
	completed, err := run.Complete(ctx)
	if err != nil {
		return err
	}
	if errs := completed.Validate(); len(errs) > 0 {
		return utilerrors.NewAggregate(errs)
	}
	return app.Run(ctx, completed)
}

// announce waits until the server is ready, starts the controllers and tells the address.
func announce(ctx context.Context, folder, address string, controllers bool) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfigFile)
	if err != nil {
		return err
	}
	// Tests wait for what the controllers do.
	config.QPS, config.Burst = 1000, 2000
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	var last error
	err = wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, readyWithin, true, func(ctx context.Context) (bool, error) {
		last = client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
		return last == nil, nil
	})
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("not ready in time: %w", last)
	}
	if controllers {
		if err := startControllers(ctx, config); err != nil {
			return fmt.Errorf("controllers: %w", err)
		}
	}
	return replace(filepath.Join(folder, readyFile), []byte(address+"\n"))
}

func embedURL(text string) ([]url.URL, error) {
	parsed, err := url.Parse(text)
	if err != nil {
		return nil, err
	}
	return []url.URL{*parsed}, nil
}
