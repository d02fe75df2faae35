// An external authorizer on Envoy's own API types and gRPC's own server, for the tests of CUSTOM policies. It speaks
// gRPC and plain HTTP on two ports (GRPC_PORT and HTTP_PORT, or any) that it prints, and does what the question's headers say:
//
//	x-decide: allow | plain | deny | teapot | empty | contradict | path | fail | hang
//
// Each question that it was asked is one line of JSON on its standard output.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

var (
	output   sync.Mutex
	accepted atomic.Int64
)

// counting counts the connections of a listener.
type counting struct{ net.Listener }

func (listener counting) Accept() (net.Conn, error) {
	connection, err := listener.Listener.Accept()
	if err == nil {
		accepted.Add(1)
	}
	return connection, err
}

// asked tells the test about a question.
func asked(question map[string]any) {
	question["connections"] = accepted.Load()
	output.Lock()
	defer output.Unlock()
	if err := json.NewEncoder(os.Stdout).Encode(question); err != nil {
		os.Exit(1)
	}
}

type authorizer struct {
	authv3.UnimplementedAuthorizationServer
}

func (authorizer) Check(ctx context.Context, request *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	attributes := request.GetAttributes()
	http := attributes.GetRequest().GetHttp()
	deadline, hasDeadline := ctx.Deadline()
	asked(map[string]any{
		"over": "grpc", "method": http.GetMethod(), "path": http.GetPath(), "host": http.GetHost(),
		"scheme": http.GetScheme(), "protocol": http.GetProtocol(), "size": http.GetSize(), "id": http.GetId(),
		"headers": http.GetHeaders(), "body": http.GetBody(), "rawBody": string(http.GetRawBody()),
		"source":             attributes.GetSource().GetPrincipal(),
		"sourceAddress":      attributes.GetSource().GetAddress().GetSocketAddress().GetAddress(),
		"destination":        attributes.GetDestination().GetPrincipal(),
		"destinationAddress": attributes.GetDestination().GetAddress().GetSocketAddress().GetAddress(),
		"destinationPort":    attributes.GetDestination().GetAddress().GetSocketAddress().GetPortValue(),
		"hasTime":            attributes.GetRequest().GetTime().GetSeconds() > 0,
		"hasHttp":            http != nil,
		"hasDeadline":        hasDeadline && !deadline.IsZero(),
	})
	ok := &status.Status{Code: int32(codes.OK)}
	header := func(key, value string) *corev3.HeaderValueOption {
		return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: key, Value: value}}
	}
	allowed := &authv3.OkHttpResponse{
		Headers: []*corev3.HeaderValueOption{
			header("x-user", "alice"),
			{Header: &corev3.HeaderValue{Key: "x-groups", Value: "staff"}, Append: wrapperspb.Bool(true)},
		},
		HeadersToRemove:         []string{"x-secret", ":path", "host"},
		ResponseHeadersToAdd:    []*corev3.HeaderValueOption{header("x-checked", "yes"), header("server", "authz")},
		QueryParametersToSet:    []*corev3.QueryParameter{{Key: "user", Value: "alice"}},
		QueryParametersToRemove: []string{"token"},
	}
	switch decision(http) {
	case "allow":
		return &authv3.CheckResponse{Status: ok, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: allowed}}, nil
	case "plain":
		return &authv3.CheckResponse{Status: ok}, nil
	case "path":
		allowed.Headers = append(allowed.Headers, header(":path", "/admin"))
		return &authv3.CheckResponse{Status: ok, HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: allowed}}, nil
	case "empty":
		return &authv3.CheckResponse{}, nil
	case "contradict":
		denied := &authv3.DeniedHttpResponse{Status: &typev3.HttpStatus{Code: typev3.StatusCode_Unauthorized}}
		return &authv3.CheckResponse{Status: ok, HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: denied}}, nil
	case "fail":
		return nil, grpcstatus.Error(codes.Unavailable, "told to fail")
	case "hang":
		<-ctx.Done()
		asked(map[string]any{"cancelled": true})
		return nil, grpcstatus.FromContextError(ctx.Err()).Err()
	case "teapot":
		denied := &authv3.DeniedHttpResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode_Found},
			Headers: []*corev3.HeaderValueOption{header("location", "https://login.example/"), header("content-length", "3")},
			Body:    "go and log in",
		}
		return &authv3.CheckResponse{
			Status:       &status.Status{Code: int32(codes.Unauthenticated)},
			HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: denied},
		}, nil
	default:
		return &authv3.CheckResponse{Status: &status.Status{Code: int32(codes.PermissionDenied)}}, nil
	}
}

// decision is what a question's headers ask for; about connections the environment says it.
func decision(http *authv3.AttributeContext_HttpRequest) string {
	if http == nil {
		return os.Getenv("DECIDE_CONNECTIONS")
	}
	return http.GetHeaders()["x-decide"]
}

func overHTTP(writer http.ResponseWriter, request *http.Request) {
	body, _ := io.ReadAll(request.Body)
	headers := map[string]string{}
	for name, lines := range request.Header {
		headers[strings.ToLower(name)] = strings.Join(lines, ",")
	}
	asked(map[string]any{
		"over": "http", "method": request.Method, "path": request.RequestURI, "host": request.Host,
		"headers": headers, "body": string(body), "size": request.ContentLength,
	})
	switch request.Header.Get("x-decide") {
	case "allow":
		writer.Header().Set("x-user", "alice")
		writer.Header().Set("x-other", "stays")
		writer.Header().Set("x-checked", "yes")
		writer.Header().Add("set-cookie", "a=1")
		writer.Header().Add("set-cookie", "b=2")
		writer.Header().Set("x-envoy-auth-headers-to-remove", "x-secret, host")
	case "fail":
		writer.WriteHeader(http.StatusBadGateway)
	case "hang":
		<-request.Context().Done()
		asked(map[string]any{"cancelled": true})
	case "teapot":
		writer.Header().Set("location", "https://login.example/")
		writer.Header().Set("x-why", "unknown")
		writer.Header().Set("x-hidden", "secret")
		writer.WriteHeader(http.StatusFound)
		fmt.Fprint(writer, "go and log in")
	default:
		writer.WriteHeader(http.StatusForbidden)
		fmt.Fprint(writer, "no")
	}
}

func main() {
	address := os.Getenv("LISTEN")
	listen := func(wanted string) net.Listener {
		port := os.Getenv(wanted)
		if port == "" {
			port = "0"
		}
		listener, err := net.Listen("tcp", net.JoinHostPort(address, port))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return listener
	}
	grpcListener, httpListener := listen("GRPC_PORT"), listen("HTTP_PORT")
	server := grpc.NewServer()
	authv3.RegisterAuthorizationServer(server, authorizer{})
	go server.Serve(counting{grpcListener})
	go http.Serve(counting{httpListener}, http.HandlerFunc(overHTTP))
	asked(map[string]any{
		"grpc": grpcListener.Addr().(*net.TCPAddr).Port,
		"http": httpListener.Addr().(*net.TCPAddr).Port,
	})
	// Ends with the test: its end of this pipe is closed then, however it ends.
	io.Copy(io.Discard, os.Stdin)
}
