package rpc

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
	"github.com/remotegpu/remotegpu/gen/remotegpu/v1/remotegpuv1connect"
	"github.com/remotegpu/remotegpu/runtime"
	"github.com/remotegpu/remotegpu/runtime/logfile"
)

// GetLogs implements the RPC.
func (s *environmentService) GetLogs(ctx context.Context, req *remotegpuv1.GetLogsRequest, stream remotegpuv1connect.EnvironmentServiceGetLogsServerStream) error {
	request := runtime.LogRequest{
		Project: req.GetProject(), Environment: req.GetEnvironment(), Follow: req.GetFollow(), Tail: req.Tail, Stream: logfile.Stream(req.GetStream()),
		ResumeAfter: req.GetResumeAfter(),
	}
	if req.GetSince() != nil {
		request.Since = req.GetSince().AsTime()
	}
	if req.GetUntil() != nil {
		request.Until = req.GetUntil().AsTime()
	}
	return s.cfg.Manager.Logs(ctx, request, func(lines []logfile.Line, token string) error {
		message := &remotegpuv1.GetLogsResponse{Lines: make([]*remotegpuv1.LogLine, len(lines)), ResumeToken: token}
		for i := range lines {
			message.Lines[i] = toLogLine(&lines[i])
		}
		return stream.Send(message)
	})
}

func toLogLine(line *logfile.Line) *remotegpuv1.LogLine {
	out := &remotegpuv1.LogLine{Stream: remotegpuv1.LogStream(line.Stream), Data: line.Data, Partial: line.Partial}
	if !line.Time.IsZero() {
		out.Time = timestamppb.New(line.Time)
	}
	return out
}
