package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/loamdata/loam/internal/step"
)

// A build that was killed when some of its parts were whole is gone on with by the next one, which doesn't write them again: what was removed of
// them meanwhile is still missing, is named by verify, and is written by a repair.
func TestKilledBuild(t *testing.T) {
	c := newCrashes(t)
	s := c.project(t)
	run(t, s.dir, "simulate", "--topics", "--partitions", "3", "--days", "20", "--seed", "5", "--events", "24000", "--contacts", "6000")
	run(t, s.dir, ending...)
	for _, view := range []string{"profile", "activity"} {
		c.crash(t, s.dir, step.GenerationPart, 0, "materialize", "--view", view)
		generations := s.name + ":" + view + ":generations"
		fields, err := s.redis.HGetAll(t.Context(), generations).Result()
		if err != nil {
			t.Fatal(err)
		}
		number := fields["next"]
		there := s.keys(t.Context(), s.name+":"+view+":"+number+":*")
		served := s.keys(t.Context(), s.name+":"+view+":"+fields["current"]+":*")
		if len(there) == 0 || len(there) >= len(served) || fields[number+"/build"] == "" {
			t.Fatalf("%s: %d of %d entities were written when it was killed: %v", view, len(there), len(served), fields)
		}
		slices.Sort(there)
		gone := there[len(there)/2]
		if err := s.redis.Del(t.Context(), gone).Err(); err != nil {
			t.Fatal(err)
		}
		_, said, code := runErr(t, s.dir, "materialize", "--view", view)
		if code != 0 || !strings.Contains(said, "goes on with generation "+number+" where a build ended: ") {
			t.Errorf("%s ends with %d: %s", view, code, said)
		}
		now, err := s.redis.HGetAll(t.Context(), generations).Result()
		if err != nil || now["current"] != number || now["next"] != number || now[number+"/build"] != "" {
			t.Errorf("%s: %v, %v", view, now, err)
		}
		entity := gone[strings.LastIndex(gone, "|")+1 : len(gone)-1]
		found, _, code := runErr(t, s.dir, "verify", "--online", "--view", view)
		if code != 1 || !strings.Contains(found, "1 difference") || !strings.Contains(found, "missing entity of "+entity) {
			t.Errorf("%s: %d entities of %d were written, and what was removed of them isn't the one that is missing: %s", view, len(there), len(served), found)
		}
		run(t, s.dir, "materialize", "--view", view, "--entity", "contact_id="+entity)
		if found := run(t, s.dir, "verify", "--online", "--view", view); !strings.Contains(found, "0 differences and 0 not settled") {
			t.Errorf("%s: %s", view, found)
		}
	}
}
