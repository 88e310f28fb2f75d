package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"
)

// A key of a view that comes to hold another type holds nothing up: it is named, and the view is built anew, with the change
// that was lost there.
func TestForeignKeyUnderWorker(t *testing.T) {
	redis := miniredis.RunT(t)
	dir := newProject(t, fmt.Sprintf("online: {redis: %q}", redis.Addr()))
	topic := filepath.Join(dir, ".loam", "topics", "contact.v1", "0.jsonl")
	write(t, topic, change(100, "customer")+"\n")
	write(t, filepath.Join(dir, "features", "state.yaml"), "views: [{name: state, entity: contact, stream: contact, features: [mkt_status]}]\n")
	run(t, dir, "apply")
	w := startWorker(t, dir, "--commit-every", "50ms")
	w.awaitSaid("feature view state is served")
	w.await("it is there", func() bool { return redis.Exists("crm:state:1:{contact|c1}") })
	redis.Del("crm:state:1:{contact|c1}")
	if err := redis.Set("crm:state:1:{contact|c1}", "text"); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(topic, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = file.WriteString(change(50, "lead") + "\n") // late: the change before it is still the last
	}
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	w.awaitSaid("the key crm:state:1:{contact|c1} of the online store holds what loam doesn't write: feature view state is built anew")
	w.await("it was built anew", func() bool { return strings.Count(w.stderr(), "feature view state is served") == 2 })
	w.stop()
	if got := run(t, dir, "get", "--features", "state:mkt_status", "--entity", "contact_id=c1"); !strings.Contains(got, "customer") {
		t.Errorf("served is\n%s", got)
	}
}
