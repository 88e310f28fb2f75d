package feature

import "testing"

// A name that several streams have is listed once.
func TestKnownNamesAreListedOnce(t *testing.T) {
	if got, want := didYouMean("zzzzzzzz", []string{"contact_id", "account_id", "contact_id"}), "known: account_id, contact_id"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
