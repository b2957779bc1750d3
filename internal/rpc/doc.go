// Package rpc serves the API: it turns protobuf messages into calls of the
// Manager and its neighbours and their errors into Connect errors. It decides
// nothing and keeps nothing. Generated types end here.
package rpc
