package containerd

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// conclude has streams that are written to end with their status. grpc answers
// a message that can no longer be sent with io.EOF, and tells why to those alone
// who go on receiving, which containerd's client does not: a containerd that was
// killed while content is written would be taken for one that has finished.
func conclude(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := open(ctx, desc, conn, method, opts...)
	if err != nil || !desc.ClientStreams {
		return stream, err
	}
	return &concluded{ClientStream: stream}, nil
}

// concluded is a stream whose caller sends and receives in turn, as content is
// written: nobody else receives while SendMsg does.
type concluded struct{ grpc.ClientStream }

// SendMsg implements grpc.ClientStream.
func (s *concluded) SendMsg(message any) error {
	err := s.ClientStream.SendMsg(message)
	if !errors.Is(err, io.EOF) {
		return err
	}
	// Answers that came before the end, of any type, are passed over. None comes
	// after it: this does not wait.
	for err = nil; err == nil; {
		err = s.RecvMsg(new(emptypb.Empty))
	}
	return err // io.EOF for a good end, though not one that was asked for
}
