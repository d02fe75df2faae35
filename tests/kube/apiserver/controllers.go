package main

import (
	"context"
	"os"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/controller-manager/pkg/informerfactory"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/controller/certificates/rootcacertpublisher"
	"k8s.io/kubernetes/pkg/controller/deployment"
	"k8s.io/kubernetes/pkg/controller/endpointslice"
	"k8s.io/kubernetes/pkg/controller/garbagecollector"
	"k8s.io/kubernetes/pkg/controller/namespace"
	"k8s.io/kubernetes/pkg/controller/replicaset"
	"k8s.io/kubernetes/pkg/controller/serviceaccount"
)

const (
	workers = 2
	// kube-controller-manager's defaults.
	endpointsPerSlice = 100
	burstReplicas     = 500
	// How soon the garbage collector learns of new kinds, and how long it waits for its first view.
	kindsEvery = 2 * time.Second
	synced     = 30 * time.Second
)

// startControllers runs those parts of kube-controller-manager without which nothing comes of objects: each namespace's
// `default` account and root certificate, pods of Deployments, EndpointSlices of Services, what goes with its owner or its
// namespace. Scheduler and kubelet there are none: tests play them.
func startControllers(ctx context.Context, config *rest.Config) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	objects, err := metadata.NewForConfig(config)
	if err != nil {
		return err
	}
	authority, err := os.ReadFile("ca.crt")
	if err != nil {
		return err
	}
	shared := informers.NewSharedInformerFactory(client, 0)
	core, apps := shared.Core().V1(), shared.Apps().V1()

	accounts, err := serviceaccount.NewServiceAccountsController(klog.FromContext(ctx), core.ServiceAccounts(),
		core.Namespaces(), client, serviceaccount.DefaultServiceAccountsControllerOptions())
	if err != nil {
		return err
	}
	roots, err := rootcacertpublisher.NewPublisher(core.ConfigMaps(), core.Namespaces(), client, authority)
	if err != nil {
		return err
	}
	deployments, err := deployment.NewDeploymentController(ctx, apps.Deployments(), apps.ReplicaSets(), core.Pods(), client)
	if err != nil {
		return err
	}
	replicas := replicaset.NewReplicaSetController(ctx, apps.ReplicaSets(), core.Pods(), client, burstReplicas)
	slices := endpointslice.NewController(ctx, core.Pods(), core.Services(), core.Nodes(),
		shared.Discovery().V1().EndpointSlices(), endpointsPerSlice, client, 0)
	namespaces := namespace.NewNamespaceController(ctx, client, objects,
		client.Discovery().ServerPreferredNamespacedResources, core.Namespaces(), 5*time.Minute, v1.FinalizerKubernetes)

	kinds := memory.NewMemCacheClient(client.Discovery())
	started := make(chan struct{})
	garbage, err := garbagecollector.NewGarbageCollector(ctx, client, objects,
		restmapper.NewDeferredDiscoveryRESTMapper(kinds), garbagecollector.DefaultIgnoredResources(),
		informerfactory.NewInformerFactory(shared, metadatainformer.NewSharedInformerFactory(objects, 0)), started)
	if err != nil {
		return err
	}
	for _, controller := range []func(context.Context, int){
		accounts.Run, roots.Run, deployments.Run, replicas.Run, slices.Run, namespaces.Run,
	} {
		go controller(ctx, workers)
	}
	shared.Start(ctx.Done())
	close(started)
	go garbage.Run(ctx, workers, synced)
	go garbage.Sync(ctx, client.Discovery(), kindsEvery)
	return nil
}
