package rpc

import (
	"context"

	"connectrpc.com/connect/v2"
	"github.com/containerd/errdefs"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// registerHealth serves grpc.health.v1 with the messages of the gRPC module:
// a generated copy of our own would register the same protobuf names twice in
// one program.
func registerHealth(server *connect.Server) {
	methods := healthv1.File_grpc_health_v1_health_proto.Services().ByName("Health").Methods()
	answer := func(_ context.Context, _ connect.Spec, stream connect.ServerStream) error {
		var req healthv1.HealthCheckRequest
		if err := stream.Receive(&req); err != nil {
			return err
		}
		if !serves(server, req.GetService()) {
			return connect.Errorf(connect.CodeNotFound, "unknown service %q", req.GetService()).WithCause(errdefs.ErrNotFound)
		}
		return stream.Send(&healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_SERVING})
	}
	server.Register(
		connect.Method{Spec: connect.Spec{
			StreamType: connect.StreamTypeUnary, Schema: methods.ByName("Check"),
			Procedure: healthv1.Health_Check_FullMethodName, IdempotencyLevel: connect.IdempotencyNoSideEffects,
		}, Handler: answer},
		connect.Method{Spec: connect.Spec{
			StreamType: connect.StreamTypeServer, Schema: methods.ByName("Watch"), Procedure: healthv1.Health_Watch_FullMethodName,
		}, Handler: func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
			if err := answer(ctx, spec, stream); err != nil {
				return err
			}
			<-ctx.Done() // the state only changes with the connection
			return nil
		}},
	)
}

// serves says whether the server has the service; "" is the server itself.
func serves(server *connect.Server, service string) bool {
	if service == "" {
		return true
	}
	for spec := range server.Specs() {
		if len(spec.Procedure) > len(service)+1 && spec.Procedure[1:len(service)+1] == service && spec.Procedure[len(service)+1] == '/' {
			return true
		}
	}
	return false
}
