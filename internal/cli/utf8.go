package cli

import (
	"context"
	"fmt"
	"slices"
	"unicode/utf8"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// onlyUTF8 refuses a request that cannot be encoded, and says which of its strings
// is at fault: what is written on a command line may be any bytes, strings of the
// API are UTF-8. Connect would find out too late, when an empty request is under
// way, which may ask for something, too.
func onlyUTF8(next connect.ClientFunc) connect.ClientFunc {
	return func(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
		stream, err := next(ctx, spec)
		if err != nil {
			return nil, err
		}
		return checkedStream{stream}, nil
	}
}

type checkedStream struct{ connect.ClientStream }

// Send implements connect.ClientStream.
func (s checkedStream) Send(message any) error {
	if request, ok := message.(proto.Message); ok {
		if bad := notUTF8("", request.ProtoReflect()); bad != nil {
			return bad
		}
	}
	return s.ClientStream.Send(message)
}

// notUTF8 is the failure that a string in message is; nil: none is.
func notUTF8(path string, message protoreflect.Message) (bad error) {
	check := func(field protoreflect.FieldDescriptor, path string, value protoreflect.Value) {
		switch {
		case bad != nil:
		case field.Message() != nil:
			bad = notUTF8(path+".", value.Message())
		case field.Kind() == protoreflect.StringKind && !utf8.ValidString(value.String()):
			bad = badString(field, path, value.String())
		}
	}
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		path := path + string(field.Name())
		switch {
		case field.IsList():
			for i := range value.List().Len() {
				check(field, fmt.Sprintf("%s[%d]", path, i), value.List().Get(i))
			}
		case field.IsMap():
			value.Map().Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
				path := fmt.Sprintf("%s[%q]", path, key.String())
				check(field.MapKey(), path, key.Value())
				check(field.MapValue(), path, value)
				return bad == nil
			})
		default:
			check(field, path, value)
		}
		return bad == nil
	})
	return bad
}

// badString is what is said of one. Only an argument is shown: others may be secret.
func badString(field protoreflect.FieldDescriptor, path, value string) *failure {
	f := &failure{
		Code: "invalid_argument", Message: path + " is not UTF-8, as strings of the API are", exit: exitUsage,
		Fields: []fieldFault{{Field: path}}, Hints: []string{"write it in UTF-8"},
	}
	if slices.Contains([]protoreflect.Name{"argv", "command", "entrypoint"}, field.Name()) {
		f.Message = fmt.Sprintf("the argument %q is not UTF-8, as strings of the API are", value)
		f.Hints = []string{`have a shell in the environment make the bytes, as in sh -c 'rm "$(printf "caf\351")"'`}
	}
	return f
}
