package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// faultTests are the tests of each fault that the docs name, by the words that it begins with there. TestFaultsHaveTests holds both together.
var faultTests = map[string]map[string][]string{
	"redis.md": {
		"Redis restarts, empty, with its data or from an old dump": {"internal/e2e.TestSkew", "internal/e2e.TestRedisRestartsEmpty", "serve.TestStorm", "online.TestRestartWhileBuilding"},
		"Redis is away, cut off, or too slow": {"internal/e2e.TestRedisFaults", "internal/e2e.TestRedisDies", "serve.TestRedisAway", "serve.TestRedisSilent",
			"serve.TestRedisSlow", "serve.TestNetworkCut", "cmd/loam.TestOnlineLoopGivesUp", "online.TestTilesLostAnswers"},
		"a script is missing": {"online.TestLostScripts", "online.TestTilesLostScriptsAndForeignKeys"},
		"memory is short":     {"online.TestFullRedis", "online.TestFullRedisOfTiles", "internal/e2e.TestRedisFaults"},
		"a key of a view in loam's own layout holds another type": {"online.TestForeignKeys", "online.TestTilesLostScriptsAndForeignKeys", "internal/e2e.TestForeignKeyUnderWorker"},
		"a build is killed":       {"online.TestResume", "online.TestResumeTiles", "internal/e2e.TestKilledBuild"},
		"`maxclients` is reached": {"serve.TestMaxClients", "internal/e2e.TestRedisFaults"},

		"A master restarts, or a replica takes over": {"online.TestFailover", "online.TestReplica"},
		"Slots are moved":        {"online.TestResharding"},
		"Slots without a server": {"online.TestFailover"},
		"Keys are listed":        {"online.TestListingWhileSlotsMove"},
	},
	"serve.md": {
		"Redis is away":                              {"serve.TestRedisAway", "serve.TestRedisSilent"},
		"Redis is slow":                              {"serve.TestRedisSlow", "internal/e2e.TestRedisFaults"},
		"The network is cut":                         {"serve.TestNetworkCut", "internal/e2e.TestRedisFaults"},
		"Redis is full":                              {"internal/e2e.TestRedisFaults", "online.TestFullRedis", "online.TestFullRedisOfTiles"},
		"Redis takes no more clients":                {"serve.TestMaxClients", "internal/e2e.TestRedisFaults"},
		"Scripts are lost":                           {"online.TestLostScripts", "online.TestTilesLostScriptsAndForeignKeys"},
		"Slots of a Cluster are moved":               {"online.TestResharding"},
		"Slots without a server":                     {"online.TestFailover"},
		"Redis restarted":                            {"serve.TestStorm", "internal/e2e.TestSkew"},
		"A replica takes over":                       {"online.TestFailover", "online.TestReplica"},
		"A view is switched to another generation":   {"serve.TestSwitchUnderReads", "serve.TestStorm"},
		"A view's definition changed":                {"online.TestGenerations"},
		"A key holds another type":                   {"serve.TestErrors", "online.TestForeignKeys"},
		"Slow clients":                               {"serve.TestSlowAndLarge"},
		"Ten thousand clients":                       {"internal/e2e.TestTenThousandClients", "internal/e2e.TestMoreClientsThanFiles", "serve.TestOverload"},
		"An engine that computes features on demand": {"online.TestEnginesAreShared", "serve.TestOnDemand"},
		"SIGTERM":                                    {"serve.TestGracefulStop"},
	},
}

// faultsNamed are the faults that a page of the docs names: rows and bold words of these parts of it.
func faultsNamed(t *testing.T, page string) (named []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs", page))
	if err != nil {
		t.Fatal(err)
	}
	part := ""
	bold := regexp.MustCompile(`\*\*([^*]+)\*\*`)
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			part = strings.TrimSpace(strings.TrimLeft(line, "#"))
			continue
		}
		switch part {
		case "Faults":
			if cell, _, row := strings.Cut(strings.TrimPrefix(line, "| "), " | "); row && cell != "what happens" {
				named = append(named, cell)
			}
		case "A Cluster", "What each fault does":
			for _, words := range bold.FindAllStringSubmatch(line, -1) {
				named = append(named, words[1])
			}
		}
	}
	return named
}

// Every fault that the docs name has a test that there is, and no other one is listed.
func TestFaultsHaveTests(t *testing.T) {
	for page, listed := range faultTests {
		named := faultsNamed(t, page)
		for _, fault := range named {
			found := false
			for words := range listed {
				found = found || strings.HasPrefix(fault, words)
			}
			if !found {
				t.Errorf("docs/%s names a fault that faultTests has no test of: %s", page, fault)
			}
		}
		for words, tests := range listed {
			if !slices.ContainsFunc(named, func(fault string) bool { return strings.HasPrefix(fault, words) }) {
				t.Errorf("faultTests has tests of a fault that docs/%s doesn't name: %s", page, words)
			}
			for _, one := range tests {
				folder, name, _ := strings.Cut(one, ".")
				if !declares(t, filepath.Join(root, folder), name) {
					t.Errorf("there is no test %s, of: %s", one, words)
				}
			}
		}
	}
}

// declares reports whether the tests of a folder have one of a name.
func declares(t *testing.T, folder, name string) bool {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "\nfunc "+name+"(t *testing.T) {") {
			return true
		}
	}
	return false
}
