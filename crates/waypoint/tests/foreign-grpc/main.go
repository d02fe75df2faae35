// A client and a server on gRPC's own library for Go, for the tests of gRPC through a waypoint.
//
//	foreign-grpc serve ADDRESS    prints its port and serves until its input ends
//	foreign-grpc call ADDRESS     makes each kind of call and prints what came of it, a line of JSON each
//	foreign-grpc hold ADDRESS     makes one call that lasts: sends each line of its input, prints what comes as "got ...", and
//	                              in the end "closed" with the status
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

type text = wrapperspb.StringValue

var both = grpc.StreamDesc{StreamName: "Both", ServerStreams: true, ClientStreams: true}

func main() {
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "serve":
		err = serve(os.Args[2])
	case len(os.Args) == 3 && os.Args[1] == "call":
		err = call(os.Args[2])
	case len(os.Args) == 3 && os.Args[1] == "hold":
		err = hold(os.Args[2])
	default:
		err = errors.New("usage: foreign-grpc serve|call|hold ADDRESS")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// The server: every method takes and gives any number of texts.

func serve(address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	stream := func(name string, handler grpc.StreamHandler) grpc.StreamDesc {
		return grpc.StreamDesc{StreamName: name, Handler: handler, ServerStreams: true, ClientStreams: true}
	}
	server := grpc.NewServer()
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "test.Echo",
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{
			stream("Unary", unary),
			stream("Download", download),
			stream("Upload", upload),
			stream("Both", echo),
			stream("Wait", wait),
			stream("Fail", fail),
			stream("Denied", unary),
		},
	}, nil)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	return server.Serve(listener)
}

func unary(_ any, stream grpc.ServerStream) error {
	incoming, _ := metadata.FromIncomingContext(stream.Context())
	if err := stream.SetHeader(metadata.Pairs("x-head", strings.Join(incoming.Get("x-sent"), ","))); err != nil {
		return err
	}
	stream.SetTrailer(metadata.Pairs("x-tail", "last", "x-tail-bin", "\x00\xff"))
	var message text
	if err := stream.RecvMsg(&message); err != nil {
		return err
	}
	deadline, has := stream.Context().Deadline()
	return stream.SendMsg(wrapperspb.String(fmt.Sprint(message.Value, " ", has && time.Until(deadline) < time.Minute)))
}

func download(_ any, stream grpc.ServerStream) error {
	stream.SetTrailer(metadata.Pairs("x-tail", "last"))
	for number := range 100 {
		if err := stream.SendMsg(wrapperspb.String(fmt.Sprint(number, strings.Repeat("x", 10_000)))); err != nil {
			return err
		}
	}
	return nil
}

func upload(_ any, stream grpc.ServerStream) error {
	total := 0
	for {
		var message text
		if err := stream.RecvMsg(&message); err == io.EOF {
			return stream.SendMsg(wrapperspb.String(fmt.Sprint(total)))
		} else if err != nil {
			return err
		}
		total += len(message.Value)
	}
}

func echo(_ any, stream grpc.ServerStream) error {
	stream.SetTrailer(metadata.Pairs("x-tail", "last"))
	for {
		var message text
		if err := stream.RecvMsg(&message); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(&message); err != nil {
			return err
		}
	}
}

// Ends with the client's patience, and says so on standard output.
func wait(_ any, stream grpc.ServerStream) error {
	<-stream.Context().Done()
	fmt.Println("gone")
	return stream.Context().Err()
}

func fail(_ any, stream grpc.ServerStream) error {
	stream.SetTrailer(metadata.Pairs("x-tail", "last"))
	return status.Error(codes.NotFound, "no such thing: 100 %, ünd")
}

// The client.

// What came of a call.
type outcome struct {
	Name     string   `json:"name"`
	Code     uint32   `json:"code"`
	Message  string   `json:"message"`
	Head     []string `json:"head"`
	Tail     []string `json:"tail"`
	Received []string `json:"received"`
	Millis   int64    `json:"millis"`
}

func call(address string) error {
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	many := make([]string, 100)
	for number := range many {
		many[number] = strings.Repeat("y", 10_000)
	}
	calls := []struct {
		name    string
		sent    []string
		timeout time.Duration
	}{
		{"Unary", []string{"hello"}, 20 * time.Second},
		{"Download", nil, 20 * time.Second},
		{"Upload", many, 20 * time.Second},
		{"Both", []string{"one", "two", "three"}, 20 * time.Second},
		{"Fail", nil, 20 * time.Second},
		{"Denied", []string{"hello"}, 20 * time.Second},
		{"Wait", nil, 300 * time.Millisecond},
		{"Unary", []string{"again"}, 20 * time.Second},
	}
	for _, one := range calls {
		line, err := json.Marshal(attempt(connection, one.name, one.sent, one.timeout))
		if err != nil {
			return err
		}
		fmt.Println(string(line))
	}
	return nil
}

func hold(address string) error {
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	stream, err := connection.NewStream(context.Background(), &both, "/test.Echo/Both")
	if err != nil {
		return err
	}
	fmt.Println("open")
	go func() {
		lines := bufio.NewScanner(os.Stdin)
		for lines.Scan() {
			// Whoever receives learns of the end.
			_ = stream.SendMsg(wrapperspb.String(lines.Text()))
		}
		_ = stream.CloseSend()
	}()
	for {
		var message text
		if err := stream.RecvMsg(&message); err != nil {
			fmt.Println("closed", uint32(status.Code(err)), status.Convert(err).Message())
			return nil
		}
		fmt.Println("got", message.Value)
	}
}

// Both ends take turns where the method is Both; else all is sent before anything is read.
func attempt(connection *grpc.ClientConn, name string, sent []string, timeout time.Duration) outcome {
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "x-sent", "mine")
	result := outcome{Name: name}
	stream, err := connection.NewStream(ctx, &both, "/test.Echo/"+name)
	receive := func() error {
		var message text
		err := stream.RecvMsg(&message)
		if err == nil {
			result.Received = append(result.Received, message.Value)
		}
		return err
	}
	for _, message := range sent {
		if err == nil {
			err = stream.SendMsg(wrapperspb.String(message))
		}
		if err == nil && name == "Both" {
			err = receive()
		}
	}
	if err == nil {
		err = stream.CloseSend()
	}
	// A failed send says only that reading tells why.
	for stream != nil && (err == nil || (err == io.EOF && result.Tail == nil)) {
		err = receive()
		if err != nil {
			result.Tail = append([]string{}, stream.Trailer().Get("x-tail")...)
		}
	}
	if stream != nil {
		if head, failed := stream.Header(); failed == nil {
			result.Head = head.Get("x-head")
		}
	}
	if err == io.EOF {
		err = nil
	}
	result.Code, result.Message = uint32(status.Code(err)), status.Convert(err).Message()
	result.Millis = time.Since(start).Milliseconds()
	return result
}
