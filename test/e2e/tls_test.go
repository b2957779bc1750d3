package e2e_test

import (
	"strings"
	"testing"

	"github.com/remotegpu/remotegpu/internal/testutil"
)

// Beyond loopback the API speaks TLS only, and asks for the token.
func TestAPIBeyondLoopback(t *testing.T) {
	n := StartWith(t, usual, func(config string) string {
		return strings.Replace(config, `listen = "127.0.0.1:7480"`, `listen = "0.0.0.0:7480"`, 1)
	})
	const path = "/remotegpu.v1.NodeService/GetNodeInfo"
	call := "curl --silent --show-error -H 'Content-Type: application/json' -d '{}' "
	if out := n.Sh(t, call+"http://127.0.0.1:7480"+path+" || true"); strings.Contains(out, "node1") {
		t.Errorf("plain HTTP is answered: %s", out)
	}
	if out := n.Sh(t, call+"--cacert "+n.Dir+"/state/api-tls.pem https://127.0.0.1:7480"+path); !strings.Contains(out, "unauthenticated") || !strings.Contains(out, "UNAUTHENTICATED") {
		t.Errorf("without a token: %s", out)
	}
	token := n.Sh(t, "cat "+n.Dir+"/state/token")
	if out := n.Sh(t, call+"--cacert "+n.Dir+"/state/api-tls.pem -H 'Authorization: Bearer "+token+"' https://127.0.0.1:7480"+path); !strings.Contains(out, "node1") {
		t.Errorf("with the token: %s", out)
	}
	if out := n.Sh(t, "REMOTEGPU_TOKEN="+token+" REMOTEGPU_CACERT="+n.Dir+"/state/api-tls.pem "+testutil.Program("remotegpu")+
		" --addr https://127.0.0.1:7480 node info"); !strings.Contains(out, "node1") {
		t.Errorf("the command line over TLS: %s", out)
	}
	if mode := n.Sh(t, "stat -c %a "+n.Dir+"/state/token "+n.Socket()); mode != "600\n600" {
		t.Errorf("modes of token and socket: %q", mode)
	}
}
