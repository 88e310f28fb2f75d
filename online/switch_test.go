package online

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/loamdata/loam/feature"
)

// before calls a function once, before the first command or pipeline of a client that has a text in it.
type before struct {
	text string
	call func()
}

func (b *before) see(cmds ...redis.Cmder) {
	if b.call != nil && strings.Contains(fmt.Sprint(cmds), b.text) {
		call := b.call
		b.call = nil
		call()
	}
}

func (b *before) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (b *before) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		b.see(cmd)
		return next(ctx, cmd)
	}
}

func (b *before) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		b.see(cmds...)
		return next(ctx, cmds)
	}
}

// Of two builds that end together the newer one is read, though the older one found it building just before: the older one's
// hashes are removed by then, and every entity would be unknown.
func TestSwitchBesideANewerSwitch(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		ctx := context.Background()
		p := loadProject(t)
		l := openLake(t, p)
		commitTo(t, l, batchOf(t, p.Stream("thing"), 0, []string{event(1, "x", 1, 0, "updated", `,"n":1`)}))
		w := writer(t, s, p, "calc")
		var both [2]Generation
		for i := range both {
			var err error
			if both[i], err = w.Build(ctx, l, BuildOptions{Now: func() time.Time { return base }}); err != nil {
				t.Fatal(err)
			}
		}
		s.redis.AddHook(&before{text: `"state":"ready"`, call: func() {
			if err := s.Switch(ctx, "calc", both[1]); err != nil {
				t.Error(err)
			}
		}})
		if err := s.Switch(ctx, "calc", both[0]); err != nil {
			t.Fatal(err)
		}
		all, err := s.Generations(ctx, "calc")
		if err != nil || all.Current != both[1].Number || len(all.All) != 1 {
			t.Errorf("generations %+v, want %d alone: %v", all, both[1].Number, err)
		}
		if got, want := show(t, s, p, base, "x", "1", "calc:n"), "n=2"; !strings.Contains(got, want) {
			t.Errorf("read %q, want %q", got, want)
		}
	})
}

// Join keys may hold any byte: entities of which one text joined is another's are two.
func TestKeysOfAnyByteAreApart(t *testing.T) {
	for _, kind := range []struct{ name, stream, views, format string }{
		{"windows", fmt.Sprintf(tileStream, true), `entities: [{name: pair, join_keys: [who, s]}]
views:
  - {name: of, entity: pair, stream: thing, aggregates: [{name: n, fn: sum, column: n, windows: [1d]}]}
`, `{"id":"%d","who":%s,"s":%s,"n":%[1]d,"at":"%[4]s"}`},
		{"attributes", strings.NewReplacer("kind: event", "kind: state", "key: [id]", "key: [who, s]", "id: id", "# no id", "cluster_by: who", "", "keyed: true", "").Replace(fmt.Sprintf(tileStream, true)),
			"entities: [{name: pair, join_keys: [who, s]}]\nviews:\n  - {name: of, entity: pair, stream: thing, features: [{name: n_1d, type: int64, sql: n}]}\n",
			`{"id":"%d","who":%s,"s":%s,"n":%[1]d,"at":"%[4]s"}`},
	} {
		t.Run(kind.name, func(t *testing.T) {
			eachStore(t, func(t *testing.T, s *Store) {
				ctx, now := context.Background(), time.Now().UTC()
				p := loadFiles(t, kind.stream, kind.views)
				l := openLake(t, p)
				built(t, s, writer(t, s, p, "of"), l)
				live, err := NewLive(ctx, s, l, p)
				if err != nil {
					t.Fatal(err)
				}
				defer live.Close()
				at := now.Add(-time.Minute).Format(time.RFC3339)
				b := batchOf(t, p.Stream("thing"), 0, []string{
					fmt.Sprintf(kind.format, 1, `"b\u0000c"`, `"a"`, at), fmt.Sprintf(kind.format, 2, `"c"`, `"a\u0000b"`, at),
				})
				if _, err := live.Write(ctx, b, allKnown); err != nil {
					t.Fatal(err)
				}
				rows, err := NewClient(s, p, func() time.Time { return now }).Read(ctx, []feature.Ref{{View: "of", Feature: "n_1d"}},
					[]map[string]string{{"who": "b\x00c", "s": "a"}, {"who": "c", "s": "a\x00b"}})
				if err != nil {
					t.Fatal(err)
				}
				for i, want := range []string{"1", "2"} {
					if got := rows[i][0]; got.Status != Present || got.Value.Text != want {
						t.Errorf("entity %d: %s %q, want %s", i, got.Status, got.Value.Text, want)
					}
				}
			})
		})
	}
}
