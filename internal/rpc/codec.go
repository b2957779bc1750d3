package rpc

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"slices"
	"strings"

	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// jsonCodec reads requests in JSON strictly, and paths of field masks by either
// name of a field. Protobuf's own mapping takes the names of the proto file
// everywhere but there, where it refuses what restart_needed, hints and the
// documents write.
type jsonCodec struct{ *connectproto.JSONCodec }

func newJSONCodec() jsonCodec {
	// A field that the contract does not have is a typo more often than a newer
	// client's, and silence would hide it.
	strict := connectproto.NewJSONCodec()
	strict.UnmarshalOptions.DiscardUnknown = false
	return jsonCodec{strict}
}

// UnmarshalRead implements connect.Codec.
func (c jsonCodec) UnmarshalRead(ctx context.Context, src io.Reader, message any) error {
	known, ok := message.(proto.Message)
	if !ok {
		return c.JSONCodec.UnmarshalRead(ctx, src, message)
	}
	masks := masksOf(known.ProtoReflect().Descriptor())
	if len(masks) == 0 {
		return c.JSONCodec.UnmarshalRead(ctx, src, message)
	}
	data, err := io.ReadAll(src)
	if err != nil {
		return err
	}
	return c.JSONCodec.UnmarshalRead(ctx, bytes.NewReader(camelMasks(data, masks)), message)
}

// masksOf are the names in JSON of a message's field masks.
func masksOf(message protoreflect.MessageDescriptor) (names []string) {
	mask := (*fieldmaskpb.FieldMask)(nil).ProtoReflect().Descriptor().FullName()
	fields := message.Fields()
	for i := range fields.Len() {
		if f := fields.Get(i); f.Message() != nil && f.Message().FullName() == mask && !f.IsList() {
			names = append(names, f.JSONName(), f.TextName())
		}
	}
	return names
}

// camelMasks rewrites the paths of an object's field masks to lowerCamelCase,
// and nothing else: what is no such object is for the codec to refuse.
func camelMasks(data []byte, masks []string) []byte {
	decoder := json.NewDecoder(bytes.NewReader(data))
	if start, err := decoder.Token(); err != nil || start != json.Delim('{') {
		return data
	}
	var rewritten []byte
	done := 0
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return data
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return data
		}
		name, _ := key.(string)
		var paths string
		if !slices.Contains(masks, name) || json.Unmarshal(value, &paths) != nil {
			continue
		}
		camel, err := json.Marshal(camelPaths(paths))
		if err != nil {
			return data
		}
		end := int(decoder.InputOffset())
		rewritten = append(append(rewritten, data[done:end-len(value)]...), camel...)
		done = end
	}
	return append(rewritten, data[done:]...)
}

func camelPaths(paths string) string {
	all := strings.Split(paths, ",")
	for i := range all {
		all[i] = camelPath(all[i])
	}
	return strings.Join(all, ",")
}

// camelPath leaves a path alone that would not become the same one again.
func camelPath(path string) string {
	camel := make([]byte, 0, len(path))
	raise := false
	for _, c := range []byte(path) {
		switch {
		case raise && (c < 'a' || c > 'z'):
			return path
		case raise:
			camel, raise = append(camel, c-'a'+'A'), false
		case c == '_':
			raise = true
		default:
			camel = append(camel, c)
		}
	}
	if raise {
		return path
	}
	return string(camel)
}
