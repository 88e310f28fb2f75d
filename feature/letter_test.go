package feature

import "testing"

func TestRedriveJob(t *testing.T) {
	for topic, want := range map[string]string{
		RedriveTopic("redrive-7"): "redrive-7",
		"redrive:redrive-":        "redrive-",
		"redrive:7":               "",
		"redrive-7":               "",
		"file:redrive-7":          "",
		"contact.v1":              "",
	} {
		if job, ok := RedriveJob(topic); job != want || ok != (want != "") {
			t.Errorf("%s: %q, %v", topic, job, ok)
		}
	}
}
