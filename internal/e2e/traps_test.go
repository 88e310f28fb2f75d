package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// At 10 a contact becomes a lead. The change at 20 changes nothing, so that no version begins there; it stays in the log
// all the same. The late change at 15 makes a customer, and what the change at 20 said is now news:
//
//	             10        15        20
//	commit 1      [lead ───────────────────────>
//	commit 2      [lead ─────────────·─────────>    · the no-op
//	commit 3      [lead ───)[customer)[lead ───>
//
// An algorithm that forgets no-ops would leave a customer after 20.
func TestLateChangeBeforeNoOp(t *testing.T) {
	t.Parallel()
	history := trap(t, change(10, "lead"), change(20, "lead"), change(15, "customer"))
	want := []string{"[10, 15) lead", "[15, 20) customer", "[20, now) lead"}
	if !slices.Equal(history, want) {
		t.Errorf("history %q, want %q", history, want)
	}
}

// A contact is a lead from 10 on and is deleted at 30. The change at 25, which arrives after, holds up to the deletion and
// doesn't undo it:
//
//	             10             25   30
//	commit 1      [lead ──────────────────────>
//	commit 2      [lead ─────────────)
//	commit 3      [lead ────────)[customer)
//
// An algorithm that asks only whether a version is open would bring the contact back.
func TestLateChangeBeforeDelete(t *testing.T) {
	t.Parallel()
	history := trap(t, change(10, "lead"), deletion(30), change(25, "customer"))
	want := []string{"[10, 25) lead", "[25, 30) customer"}
	if !slices.Equal(history, want) {
		t.Errorf("history %q, want %q", history, want)
	}
}

// trapStart is second 0 of the traps.
var trapStart = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func trapTime(second int) string {
	return trapStart.Add(time.Duration(second) * time.Second).Format(time.RFC3339)
}

func change(second int, status string) string {
	return fmt.Sprintf(`{"envelope":{"event_id":"00000000-0000-4000-8000-%012d","event_type":"Contact.updated","source":"test","occurred_at":"%s","delivery_attempt":1,"schema_version":"1.0"},"payload":{"contact_id":"c1","mkt_status":"%s","updated_at":"%s"}}`,
		second, trapTime(second), status, trapTime(second))
}

func deletion(second int) string {
	return fmt.Sprintf(`{"envelope":{"event_id":"00000000-0000-4000-8000-%012d","event_type":"Contact.deleted","source":"test","occurred_at":"%s","delivery_attempt":1,"schema_version":"1.0"},"payload":{"contact_id":"c1"}}`,
		second, trapTime(second))
}

// trap takes each event in with a backfill of its own, so a commit of its own, and returns the versions of the contact.
func trap(t *testing.T, events ...string) []string {
	t.Helper()
	dir := newProject(t, "")
	for i, e := range events {
		file := filepath.Join(dir, fmt.Sprintf("%d.jsonl", i))
		write(t, file, e+"\n")
		if did := backfill(t, dir, file); did.Total.Accepted != 1 {
			t.Errorf("event %d: %+v", i, did.Total)
		}
	}
	if rows := verifyClean(t, dir); rows["contact"] != int64(len(events)) {
		t.Errorf("the log has %d changes, want %d", rows["contact"], len(events))
	}
	type version struct {
		From   time.Time         `json:"valid_from"`
		To     *time.Time        `json:"valid_to"`
		Values map[string]string `json:"values"`
	}
	var history []string
	for _, v := range runJSON[[]version](t, dir, "history", "contact", "c1") {
		to := "now"
		if v.To != nil {
			to = fmt.Sprint(int(v.To.Sub(trapStart).Seconds()))
		}
		history = append(history, strings.TrimSpace(fmt.Sprintf("[%d, %s) %s", int(v.From.Sub(trapStart).Seconds()), to, v.Values["mkt_status"])))
	}
	return history
}
