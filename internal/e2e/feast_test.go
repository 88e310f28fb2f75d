package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Views in Feast's layout: of a string key, of the same key in another view, and of two keys of which one is a number.
const feastDefinitions = `entities:
  - {name: contact, join_keys: [contact_id]}
  - {name: seat, join_keys: [tenant, contact_id]}
views:
  - name: profile
    entity: contact
    stream: contact
    layout: feast
    ttl: 3650d
    features:
      - mkt_status
      - attributes
      - {name: open_tickets, type: int64, sql: "attributes->>'open_tickets'"}
      - {name: customer, type: bool, sql: "mkt_status = 'customer'"}
      - {name: third, type: double, sql: "length(contact_id) / 3"}
  - name: dates
    entity: contact
    stream: contact
    layout: feast
    features: [{name: seen, type: date, sql: "'1969-12-30'::date + length(contact_id)::int"}]
  - {name: seats, entity: seat, stream: seat, layout: feast, features: [role, logins, score, active]}
`

const feastSeats = `stream: seat
kind: state
format: row
key: [tenant, contact_id]
event_time: at
delete_when: gone
columns:
  - {name: tenant, type: int64}
  - {name: contact_id, type: string}
  - {name: role, type: string}
  - {name: logins, type: int64}
  - {name: score, type: double}
  - {name: active, type: bool}
  - {name: gone, type: bool}
`

// feastTypes are those of the features above, as the script names them.
var feastTypes = []map[string]any{
	{"name": "profile", "join_keys": map[string]string{"contact_id": "string"}, "features": map[string]string{
		"mkt_status": "string", "attributes": "string", "open_tickets": "int64", "customer": "bool", "third": "double"}},
	{"name": "dates", "join_keys": map[string]string{"contact_id": "string"}, "features": map[string]string{"seen": "date"}},
	{"name": "seats", "join_keys": map[string]string{"tenant": "int64", "contact_id": "string"}, "features": map[string]string{
		"role": "string", "logins": "int64", "score": "double", "active": "bool"}},
}

// feastRow is what Feast reads of an entity.
type feastRow struct {
	Values     map[string]any    `json:"values"`
	EventTimes map[string]string `json:"event_times"`
}

// feastReads reads all features with Feast's SDK.
func feastReads(t *testing.T, python, redisAt, project string, rows []map[string]any) []feastRow {
	t.Helper()
	request, err := json.Marshal(map[string]any{"views": feastTypes, "rows": rows})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), commandMax)
	defer cancel()
	c := exec.CommandContext(ctx, python, filepath.Join(root, "scripts", "feast", "read.py"), redisAt, project)
	var out, errs bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(request), &out, &errs
	if err := c.Run(); err != nil {
		t.Fatalf("read with Feast: %v\n%s", err, errs.String())
	}
	var read []feastRow
	d := json.NewDecoder(&out)
	d.UseNumber()
	if err := d.Decode(&read); err != nil {
		t.Fatalf("read with Feast: %v", err)
	}
	return read
}

// Feast's own SDK reads what loam writes: from a build, from the stream, after a correction of equal event time and a delete, value
// by value as loam reads it.
func TestFeastSDKReads(t *testing.T) {
	python, redisAt := service(t, "LOAM_TEST_FEAST"), service(t, "LOAM_TEST_REDIS")
	name := fmt.Sprintf("feast_%d", time.Now().UnixNano())
	dir := newProject(t, fmt.Sprintf("online: {redis: %q}", redisAt))
	rewriteFile(t, filepath.Join(dir, "loam.yaml"), func(text string) string {
		return regexp.MustCompile(`(?m)^project: \S+`).ReplaceAllString(text, "project: "+name)
	})
	store := redis.NewClient(&redis.Options{Addr: redisAt, DisableIdentity: true})
	t.Cleanup(func() {
		for _, pattern := range []string{"*" + name, name + ":*"} {
			for i := store.Scan(context.Background(), 0, pattern, 10_000).Iterator(); i.Next(context.Background()); {
				store.Unlink(context.Background(), i.Val())
			}
		}
		store.Close()
	})
	if err := os.Remove(filepath.Join(dir, "datasets", "churn.yaml")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "features", "contact.yaml"), feastDefinitions)
	write(t, filepath.Join(dir, "streams", "seat.yaml"), feastSeats)
	contact := func(n int, id, at, verb, rest string) string {
		return fmt.Sprintf(`{"envelope":{"event_id":"00000000-0000-4000-8000-%012x","event_type":"Contact.%s","source":"x","occurred_at":%q,"delivery_attempt":1,"schema_version":"1.0"},"payload":{"contact_id":%q,"updated_at":%q%s}}`,
			n, verb, at, id, at, rest)
	}
	seat := func(tenant int64, id, at, rest string) string {
		return fmt.Sprintf(`{"tenant":%d,"contact_id":%q,"at":%q%s}`, tenant, id, at, rest)
	}
	topic := func(stream string, lines ...string) {
		t.Helper()
		appendFile(t, filepath.Join(dir, ".loam", "topics", stream, "0.jsonl"), strings.Join(lines, "\n")+"\n")
	}
	topic("engagement.v1")
	topic("opportunity.v1")
	topic("contact.v1",
		contact(1, "c1", "2026-10-31T12:38:18Z", "updated", `,"mkt_status":"customer","attributes":{"open_tickets":9007199254740993}`),
		contact(2, "ü|{}%", "2026-10-31T12:38:18.000001Z", "updated", `,"mkt_status":"lead"`),
		contact(3, "gone", "2026-10-31T12:38:18Z", "updated", `,"mkt_status":"lead"`))
	topic("seat.v1", seat(7, "c1", "2026-10-31T00:00:00Z", `,"role":"","logins":0,"score":0,"active":false`),
		seat(-9007199254740993, "c2", "1969-12-31T23:59:59.5Z", `,"role":"admin","logins":-1,"score":242.01,"active":true`))
	run(t, dir, "run", "--until-end")
	topic("contact.v1",
		contact(4, "c1", "2026-10-31T12:38:18Z", "updated", `,"mkt_status":"opportunity","attributes":{"open_tickets":0}`), // a correction of equal event time
		contact(5, "c1", "2026-10-30T00:00:00Z", "updated", `,"mkt_status":"lead"`),                                        // a late one
		contact(6, "gone", "2026-11-01T00:00:00Z", "deleted", ""))
	topic("seat.v1", seat(7, "c1", "2026-11-01T00:00:00.25Z", `,"logins":9223372036854775807`))
	run(t, dir, "run", "--until-end")

	rows := []map[string]any{
		{"contact_id": "c1", "tenant": 7}, {"contact_id": "ü|{}%", "tenant": 7}, {"contact_id": "gone", "tenant": 7},
		{"contact_id": "c2", "tenant": json.Number("-9007199254740993")}, {"contact_id": "nobody", "tenant": 1},
	}
	read := feastReads(t, python, redisAt, name, rows)
	want := []string{
		`{"dates:seen":"1970-01-01T00:00:00+00:00","profile:attributes":"{\"open_tickets\":0}","profile:customer":false,"profile:mkt_status":"opportunity","profile:open_tickets":0,"profile:third":0.6666666666666666,"seats:active":null,"seats:logins":9223372036854775807,"seats:role":null,"seats:score":null}`,
		`{"dates:seen":"1970-01-04T00:00:00+00:00","profile:attributes":null,"profile:customer":false,"profile:mkt_status":"lead","profile:open_tickets":null,"profile:third":1.6666666666666667,"seats:active":null,"seats:logins":null,"seats:role":null,"seats:score":null}`,
		`{"dates:seen":null,"profile:attributes":null,"profile:customer":null,"profile:mkt_status":null,"profile:open_tickets":null,"profile:third":null,"seats:active":null,"seats:logins":null,"seats:role":null,"seats:score":null}`,
		`{"dates:seen":null,"profile:attributes":null,"profile:customer":null,"profile:mkt_status":null,"profile:open_tickets":null,"profile:third":null,"seats:active":true,"seats:logins":-1,"seats:role":"admin","seats:score":242.01}`,
		`{"dates:seen":null,"profile:attributes":null,"profile:customer":null,"profile:mkt_status":null,"profile:open_tickets":null,"profile:third":null,"seats:active":null,"seats:logins":null,"seats:role":null,"seats:score":null}`,
	}
	for i, r := range read {
		var got bytes.Buffer
		e := json.NewEncoder(&got)
		e.SetEscapeHTML(false)
		if err := e.Encode(r.Values); err != nil {
			t.Fatal(err)
		}
		if strings.TrimSpace(got.String()) != want[i] {
			t.Errorf("of %v Feast reads\n%swant\n%s", rows[i], got.String(), want[i])
		}
	}
	for at, got := range map[string]string{
		"2026-10-31T12:38:18Z": read[0].EventTimes["profile"], "2026-11-01T00:00:00.250Z": read[0].EventTimes["seats"],
		"2026-10-31T12:38:18.000001Z": read[1].EventTimes["profile"], "1970-01-01T00:00:00Z": read[2].EventTimes["profile"],
	} {
		if parsed, err := time.Parse(time.RFC3339Nano, got); err != nil || parsed.Format(time.RFC3339) != at[:19]+"Z" {
			t.Errorf("Feast reads the event time %s, want %s to the second, as its answers have it", got, at)
		}
	}
	onlineClean(t, dir)
}
