package serve

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// ask sends a request of any method with headers, and gives what came.
func (f *fixture) ask(method, path, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	f.server.ServeHTTP(w, r)
	return w
}

// Every error that a caller can make is told with its place and a remedy, and is one that openapi.json knows.
func TestErrors(t *testing.T) {
	f := newFixture(t, miniredis.RunT(t).Addr(), func(o *Options) {
		o.Limits.BodyBytes, o.Limits.Entities = 400, 3
		o.Keys = []Key{{"all", "s3cret", []string{"*"}, nil}, {"some", "other", []string{"short"}, nil}, {"nothing", "none", nil, nil}}
	}).filled()
	f.redis.Set(t.Context(), f.key("all", 1, "foreign", 1), "text", 0)
	f.put("all", 1, "text", 1, 0, "n", "many")
	f.put("all", 1, "et", 1, 0)
	f.redis.HSet(t.Context(), f.key("all", 1, "et", 1), "_v", "soon")
	const get = "/get-online-features"
	known := regexp.MustCompile(`"code":"([a-z_]+)"`)
	seen := map[string]bool{}
	schema := answerSchema(t, "Error")
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		want                     string
	}{
		{"no route", "GET", "/features", "", 404,
			`{"error":{"code":"unknown_route","message":"there is no route \"/features\"","remedy":"use one of those that are known","known":["/get-online-features","/health","/metrics","/openapi.json","/push","/ready","/v1/datasets","/v1/datasets/{id}"]}}`},
		{"another method", "GET", get, "", 405, `{"error":{"code":"method_not_allowed","message":"/get-online-features doesn't take GET","remedy":"use POST"}}`},
		{"no body", "POST", get, "", 400, `{"error":{"code":"malformed_json","message":"the body is no JSON: it is empty","remedy":"send JSON as RFC 8259 has it","offset":0}}`},
		{"cut off", "POST", get, `{"features":["all:n"`, 400, `{"error":{"code":"malformed_json","message":"the body is no JSON: unexpected EOF","remedy":"send JSON as RFC 8259 has it","offset":20}}`},
		{"a comma too many", "POST", get, `{"features":["all:n",]}`, 400, `{"error":{"code":"malformed_json","message":"the body is no JSON: invalid character ',' at start of value","remedy":"send JSON as RFC 8259 has it","offset":20}}`},
		{"a name twice", "POST", get, `{"features":[],"features":[]}`, 400, `{"error":{"code":"malformed_json","message":"the body is no JSON: duplicate object member name","remedy":"send JSON as RFC 8259 has it","offset":15}}`},
		{"more behind", "POST", get, `{"features":["all:n"],"entities":{"a":["x"],"b":[1]}} {}`, 400, `{"error":{"code":"malformed_json","message":"the body is no JSON: there is more behind the object","remedy":"send JSON as RFC 8259 has it","offset":55}}`},
		{"no object", "POST", get, `[]`, 400, `{"error":{"code":"wrong_type","message":"the body is not an object","remedy":"such as {\"features\": [\"view:feature\"], \"entities\": {\"join_key\": [...]}}"}}`},
		{"unknown member", "POST", get, `{"feature":["all:n"]}`, 400, `{"error":{"code":"unknown_field","message":"a request has no member \"feature\"","remedy":"remove it; known are features, feature_service, entities, request_data, full_feature_names, include_feature_view_version_metadata","field":"feature"}}`},
		{"features are no list", "POST", get, `{"features":"all:n"}`, 400, `{"error":{"code":"wrong_type","message":"features is not a list","remedy":"such as [\"view:feature\"]","field":"features"}}`},
		{"a feature is no text", "POST", get, `{"features":["all:n",1]}`, 400, `{"error":{"code":"wrong_type","message":"features[1] is not text","remedy":"such as \"view:feature\"","field":"features[1]"}}`},
		{"a service is no text", "POST", get, `{"feature_service":1}`, 400, `{"error":{"code":"wrong_type","message":"feature_service is not text","remedy":"such as \"churn_v1\"","field":"feature_service"}}`},
		{"entities are no columns", "POST", get, `{"features":["all:n"],"entities":[{"a":"x"}]}`, 400, `{"error":{"code":"wrong_type","message":"entities is not an object of columns","remedy":"such as {\"contact_id\": [\"c1\", \"c2\"]}","field":"entities"}}`},
		{"a column is no list", "POST", get, `{"features":["all:n"],"entities":{"a":"x"}}`, 400, `{"error":{"code":"wrong_type","message":"entities.a is not a list","remedy":"such as a value for each entity","field":"entities.a"}}`},
		{"full names are no bool", "POST", get, `{"full_feature_names":"yes"}`, 400, `{"error":{"code":"wrong_type","message":"full_feature_names is not true or false","remedy":"such as true","field":"full_feature_names"}}`},
		{"no features", "POST", get, `{"entities":{"a":["x"],"b":[1]}}`, 400, `{"error":{"code":"missing_features","message":"no features are asked for","remedy":"give features, such as [\"profile:mkt_status\"], or feature_service","field":"features"}}`},
		{"features and a service", "POST", get, `{"features":["all:n"],"feature_service":"both","entities":{"a":["x"],"b":[1]}}`, 400, `{"error":{"code":"missing_features","message":"features and feature_service are both given","remedy":"give one of the two","field":"feature_service"}}`},
		{"no entities", "POST", get, `{"features":["all:n"]}`, 400, `{"error":{"code":"missing_join_key","message":"no entities are asked for","remedy":"give the join keys as columns, such as {\"contact_id\": [\"c1\"]}","field":"entities"}}`},
		{"no feature", "POST", get, `{"features":["a:b:c"],"entities":{"a":["x"],"b":[1]}}`, 400, `{"error":{"code":"missing_features","message":"\"a:b:c\" is not a feature","remedy":"write view:feature, or view:* for all of a view","field":"features[0]"}}`},
		{"unknown view", "POST", get, `{"features":["all:n","nosuch:n"],"entities":{"a":["x"],"b":[1]}}`, 404, `{"error":{"code":"unknown_view","message":"there is no feature view \"nosuch\"","remedy":"use one of those that are known","field":"features[1]","known":["all","derived","short","windows"]}}`},
		{"unknown feature", "POST", get, `{"features":["short:m"],"entities":{"a":["x"],"b":[1]}}`, 404, `{"error":{"code":"unknown_feature","message":"there is no feature of view short \"m\"","remedy":"use one of those that are known","field":"features[0]","known":["n","x"]}}`},
		{"unknown service", "POST", get, `{"feature_service":"none","entities":{"a":["x"],"b":[1]}}`, 404, `{"error":{"code":"unknown_service","message":"there is no feature service \"none\"","remedy":"use one of those that are known","field":"feature_service","known":["both"]}}`},
		{"a missing join key", "POST", get, `{"features":["all:n"],"entities":{"a":["x"]}}`, 400, `{"error":{"code":"missing_join_key","message":"feature view all needs the join key b","remedy":"add the column to entities, a value for each entity","field":"entities.b"}}`},
		{"ragged", "POST", get, `{"features":["all:n"],"entities":{"a":["x","y"],"b":[1]}}`, 400, `{"error":{"code":"ragged_columns","message":"column b has 1 values, and the first one has 2","remedy":"give each column a value for each entity","field":"entities.b"}}`},
		{"an unknown column", "POST", get, `{"features":["all:n"],"entities":{"a":["x"],"b":[1],"c":[2]}}`, 400, `{"error":{"code":"unknown_column","message":"no entity has the join key \"c\", and no view on demand takes such a column","remedy":"remove it, or mend its name","field":"entities.c"}}`},
		{"an unknown column of the request", "POST", get, `{"features":["all:n"],"entities":{"a":["x"],"b":[1]},"request_data":{"cart":[1],"cat":[2]}}`, 400, `{"error":{"code":"unknown_column","message":"no view on demand takes the column \"cat\"","remedy":"remove it, or mend its name","field":"request_data.cat"}}`},
		{"a join key as a column of the request", "POST", get, `{"features":["all:n"],"entities":{"a":["x"],"b":[1]},"request_data":{"b":[1]}}`, 400, `{"error":{"code":"unknown_column","message":"no view on demand takes the column \"b\"","remedy":"remove it, or mend its name","field":"request_data.b"}}`},
		{"a key of another type", "POST", get, `{"features":["all:n"],"entities":{"a":[7],"b":[1]}}`, 400, `{"error":{"code":"wrong_type","message":"the join key a is string","remedy":"give text","field":"entities.a[0]"}}`},
		{"a null key", "POST", get, `{"features":["all:n"],"entities":{"a":["x","y"],"b":[1,null]}}`, 400, `{"error":{"code":"wrong_type","message":"the join key b is int64","remedy":"give a whole number, or its digits as text","field":"entities.b[1]"}}`},
		{"a key that is no number", "POST", get, `{"features":["all:n"],"entities":{"a":["x"],"b":["one"]}}`, 400, `{"error":{"code":"wrong_type","message":"feature view all takes the join key b as int64","remedy":"give a value of the key's type","field":"entities.b[0]"}}`},
		{"a key with a fraction", "POST", get, `{"features":["all:n"],"entities":{"a":["x"],"b":[1.5]}}`, 400, `{"error":{"code":"wrong_type","message":"feature view all takes the join key b as int64","remedy":"give a value of the key's type","field":"entities.b[0]"}}`},
		{"two names", "POST", get, `{"features":["all:n","short:n"],"entities":{"a":["x"],"b":[1]}}`, 400, `{"error":{"code":"name_collision","message":"two of the features are called n","remedy":"set \"full_feature_names\": true, which names them view__feature","field":"features"}}`},
		{"too many", "POST", get, `{"features":["all:n"],"entities":{"a":["x","x","x","x"],"b":[1,1,1,1]}}`, 400, `{"error":{"code":"too_many_entities","message":"4 entities are asked for, and 3 are taken at once","remedy":"ask for fewer at once, or raise serve.entities in loam.yaml","field":"entities"}}`},
		{"too large", "POST", get, strings.Repeat(" ", 500), 413, `{"error":{"code":"body_too_large","message":"the body has more than the 400 bytes that are taken","remedy":"ask for fewer entities at once, or raise serve.body in loam.yaml"}}`},
		{"no column of the request", "POST", get, `{"features":["derived:big"],"entities":{"a":["x"],"b":[1]}}`, 400, `{"error":{"code":"missing_request_column","message":"feature view derived needs the column cart of the request, which is decimal(6,2)","remedy":"add the column to entities or request_data, a value for each entity","field":"entities.cart"}}`},
		{"a column of another type", "POST", get, `{"features":["derived:big"],"entities":{"a":["x"],"b":[1]},"request_data":{"cart":[1.234]}}`, 400, `{"error":{"code":"wrong_type","message":"feature view derived takes the column cart as decimal(6,2)","remedy":"give a number with no more digits than that, or its digits as text, or null","field":"request_data.cart[0]"}}`},
		{"a foreign type", "POST", get, `{"features":["all:n"],"entities":{"a":["foreign"],"b":[1]}}`, 500, `{"error":{"code":"foreign_value","message":"feature view all: what Redis holds of entity 0 was not written by loam","remedy":"the server's log says what is there; ` + "`loam materialize --view all`" + ` builds the view anew"}}`},
		{"a foreign value", "POST", get, `{"features":["all:n"],"entities":{"a":["x","text"],"b":[1,1]}}`, 500, `{"error":{"code":"foreign_value","message":"feature view all: what Redis holds of entity 1 was not written by loam","remedy":"the server's log says what is there; ` + "`loam materialize --view all`" + ` builds the view anew"}}`},
		{"a foreign time", "POST", get, `{"features":["all:n"],"entities":{"a":["et"],"b":[1]}}`, 500, `{"error":{"code":"foreign_value","message":"feature view all: what Redis holds of entity 0 was not written by loam","remedy":"the server's log says what is there; ` + "`loam materialize --view all`" + ` builds the view anew"}}`},
	} {
		w := f.ask(c.method, c.path, c.body, "Authorization", "Bearer s3cret")
		got := strings.TrimSpace(w.Body.String())
		if w.Code != c.status || got != c.want {
			t.Errorf("%s: %d\ngot  %s\nwant %d %s", c.name, w.Code, got, c.status, c.want)
		}
		valid(t, schema, got)
		for _, code := range known.FindAllStringSubmatch(got, -1) {
			seen[code[1]] = true
		}
	}
	for _, c := range []struct {
		name, header, value, body string
		status                    int
		code                      string
	}{
		{"no key", "X", "", `{}`, 401, codeNoKey},
		{"an unknown key", "Authorization", "Bearer s3creT", `{}`, 401, codeNoKey},
		{"another scheme", "Authorization", "Basic s3cret", `{}`, 401, codeNoKey},
		{"a view that the key may not read", "Authorization", "Bearer other", `{"features":["short:n","all:m"],"entities":{"a":["x"],"b":[1]}}`, 403, codeForbidden},
		{"a key's own view", "Authorization", "bearer other", `{"features":["short:n"],"entities":{"a":["x"],"b":[1]}}`, 200, ""},
	} {
		w := f.ask("POST", get, c.body, c.header, c.value)
		if w.Code != c.status || c.code != "" && !strings.Contains(w.Body.String(), `"code":"`+c.code+`"`) {
			t.Errorf("%s: %d %s", c.name, w.Code, w.Body)
		}
		if w.Code == 401 && w.Header().Get("WWW-Authenticate") != "Bearer" {
			t.Errorf("%s: no WWW-Authenticate", c.name)
		}
	}
	// A key that may read some views is told of no others.
	for _, c := range []struct {
		name, key, features string
		status              int
		known               string
	}{
		{"a view that there is not", "other", `"features":["nosuch:n"]`, 404, `"known":["short"]`},
		{"a view of one that reads nothing", "none", `"features":["nosuch:n"]`, 404, `"known":[]`},
		{"a service that there is not", "other", `"feature_service":"nosuch"`, 404, `"known":[]`},
		{"a service of which the key may read a part", "other", `"feature_service":"both"`, 403, ""},
		{"a feature that there is not", "other", `"features":["short:m"]`, 404, `"known":["n","x"]`},
		{"a feature that there is not, of a view that the key may not read", "other", `"features":["all:nosuch"]`, 403, ""},
		{"a view that isn't served, which the key may not read", "other", `"features":["windows:quiet"]`, 403, ""},
	} {
		w := f.ask("POST", get, `{`+c.features+`,"entities":{"a":["x"],"b":[1]}}`, "Authorization", "Bearer "+c.key)
		if got := w.Body.String(); w.Code != c.status || !strings.Contains(got, c.known) || c.known == "" && strings.Contains(got, `"known"`) {
			t.Errorf("%s: %d %s", c.name, w.Code, w.Body)
		}
	}
	w := f.ask("POST", get, "a=b", "Authorization", "Bearer s3cret", "Content-Type", "application/x-www-form-urlencoded")
	if w.Code != http.StatusUnsupportedMediaType || !strings.Contains(w.Body.String(), codeMedia) {
		t.Errorf("a form: %d %s", w.Code, w.Body)
	}
	if w := f.ask("GET", get, ""); w.Header().Get("Allow") != "POST" {
		t.Errorf("Allow: %q", w.Header().Get("Allow"))
	}
	if said := f.said.String(); !strings.Contains(said, "WRONGTYPE") || !strings.Contains(said, "its feature n is no int64") || strings.Contains(said, "many") || strings.Contains(said, "s3cret") {
		t.Errorf("the operator was told: %s", said)
	}
	for _, code := range []string{codeMalformed, codeUnknownField, codeWrongType, codeFeatures, codeMissingKey, codeRequest, codeColumn, codeRagged, codeManyEntities,
		codeCollision, codeNoRoute, codeNoView, codeNoFeature, codeNoService, codeMethod, codeTooLarge, codeForeign} {
		if !seen[code] {
			t.Errorf("no case has the code %s", code)
		}
	}
}

// openapi.json has the routes that there are, with their methods, and the codes of errors.
func TestOpenAPI(t *testing.T) {
	f := newFixture(t, miniredis.RunT(t).Addr(), nil).filled()
	var doc struct {
		Paths map[string]map[string]struct {
			Responses map[string]any `json:"responses"`
		} `json:"paths"`
	}
	w := f.ask("GET", "/openapi.json", "")
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, methods := range doc.Paths {
		n += len(methods)
	}
	if n != len(f.server.routes) {
		t.Errorf("openapi.json has %d operations, and there are %d routes", n, len(f.server.routes))
	}
	for _, r := range f.server.routes {
		if len(doc.Paths[r.path][strings.ToLower(r.method)].Responses) == 0 {
			t.Errorf("openapi.json lacks %s %s", r.method, r.path)
		}
	}
	valid(t, answerSchema(t, "Answer"), f.ask("POST", "/get-online-features", `{"features":["all:*"],"entities":{"a":["x","no"],"b":[1,1]}}`).Body.String())
	valid(t, answerSchema(t, "Ready"), f.ask("GET", "/ready", "").Body.String())
	request := answerSchema(t, "Request")
	valid(t, request, `{"features":["all:*"],"entities":{"a":["x","no"],"b":[1,1]},"full_feature_names":true}`)
	if invalid(request, `{"feature":["all:*"],"entities":{"a":["x"]}}`) == nil {
		t.Error("the schema takes members that requests don't have")
	}
}

// answerSchema is a schema of openapi.json.
func answerSchema(t *testing.T, name string) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(openAPIFile))
	if err != nil {
		t.Fatal(err)
	}
	nullable(doc)
	c := jsonschema.NewCompiler()
	if err := c.AddResource("openapi.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("openapi.json#/components/schemas/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// nullable writes OpenAPI 3.0's nullable as JSON Schema has it.
func nullable(v any) {
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			nullable(item)
		}
	case map[string]any:
		if typ, ok := v["type"].(string); ok && v["nullable"] == true {
			v["type"] = []any{typ, "null"}
		}
		for _, item := range v {
			nullable(item)
		}
	}
}

func invalid(s *jsonschema.Schema, text string) error {
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		return err
	}
	return s.Validate(v)
}

func valid(t *testing.T, s *jsonschema.Schema, text string) {
	t.Helper()
	if err := invalid(s, text); err != nil {
		t.Errorf("%s: %v", text, err)
	}
}

// A request whose features are computed of others, and of columns that come with it, in entities or beside them.
func TestOnDemand(t *testing.T) {
	f := newFixture(t, miniredis.RunT(t).Addr(), nil).filled()
	for _, c := range []struct{ body, want string }{
		{`{"features":["derived:*"],"entities":{"b":[1,1,1],"a":["x","old","no"],"cart":[100,"100.50",null],"tags":[["a",null,"ü\""],[],null],"moment":["2026-11-01T23:30:00-01:00",null,null]}}`,
			`{"metadata":{"feature_names":["b","a","big","sum","tagged","day","x2"]},"results":[` +
				`{"values":[1,1,1],"statuses":[P,P,P],"event_timestamps":[0,0,0]},{"values":["x","old","no"],"statuses":[P,P,P],"event_timestamps":[0,0,0]},` +
				`{"values":[true,true,null],"statuses":[P,P,N],"event_timestamps":[0,0,0]},` +
				`{"values":["97.00",null,null],"statuses":[P,N,N],"event_timestamps":[0,0,0]},` +
				`{"values":[["ü\"",null,"a"],[],null],"statuses":[P,P,N],"event_timestamps":[0,0,0]},` +
				`{"values":["2026-11-02",null,null],"statuses":[P,N,N],"event_timestamps":[0,0,0]},` +
				`{"values":[0.2,null,null],"statuses":[P,N,N],"event_timestamps":[0,0,0]}]}`},
		{`{"features":["derived:x2","short:n"],"entities":{"a":["x"],"b":[1]}}`,
			`{"metadata":{"feature_names":["a","b","x2","n"]},"results":[{"values":["x"],"statuses":[P],"event_timestamps":[0]},{"values":[1],"statuses":[P],"event_timestamps":[0]},` +
				`{"values":[0.2],"statuses":[P],"event_timestamps":[0]},{"values":[-3],"statuses":[P],"event_timestamps":["2026-11-01T01:56:40Z"]}]}`},
		{`{"features":["derived:tagged"],"request_data":{"tags":[["z","y"]]}}`,
			`{"metadata":{"feature_names":["tagged"]},"results":[{"values":[["y","z"]],"statuses":[P],"event_timestamps":[0]}]}`},
	} {
		want := strings.NewReplacer("[P", `["PRESENT"`, "[N", `["NULL_VALUE"`, ",P", `,"PRESENT"`, ",N", `,"NULL_VALUE"`, "[0]", "["+noTime+"]", "[0,0,0]", "["+noTime+","+noTime+","+noTime+"]").Replace(c.want)
		if status, got := f.post("/get-online-features", c.body); status != http.StatusOK || got != want {
			t.Errorf("%s: %d\ngot  %s\nwant %s\n%s", c.body, status, got, want, f.said)
		}
	}
}

// More requests than are answered at once are refused, with when to try again; open routes are answered.
func TestOverload(t *testing.T) {
	f := newFixture(t, miniredis.RunT(t).Addr(), func(o *Options) { o.Limits.Concurrent = 1 }).filled()
	f.server.inFlight <- struct{}{}
	w := f.ask("POST", "/get-online-features", `{"features":["all:n"],"entities":{"a":["x"],"b":[1]}}`)
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), codeOverload) || w.Header().Get("Retry-After") != "1" {
		t.Errorf("%d %s %v", w.Code, w.Body, w.Header())
	}
	if w := f.ask("GET", "/health", ""); w.Code != http.StatusOK {
		t.Errorf("health: %d", w.Code)
	}
	<-f.server.inFlight
	if w := f.ask("POST", "/get-online-features", `{"features":["all:n"],"entities":{"a":["x"],"b":[1]}}`); w.Code != http.StatusOK {
		t.Errorf("after: %d %s", w.Code, w.Body)
	}
	text := f.ask("GET", "/metrics", "").Body.String()
	for _, want := range []string{
		`loam_requests_total{route="POST /get-online-features",status="200"} 1`, `loam_requests_total{route="POST /get-online-features",status="503"} 1`,
		`loam_requests_total{route="GET /health",status="200"} 1`, `loam_request_seconds_count{route="POST /get-online-features"} 2`,
		`loam_entities_total 1`, `loam_values_total{status="PRESENT"} 1`, `loam_requests_in_flight 0`, `loam_store_errors_total{code="store_away"} 0`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("the metrics lack %s:\n%s", want, text)
		}
	}
}

// A client that sends slowly is told so, and holds up nobody; a body of a megabyte and more is refused.
func TestSlowAndLarge(t *testing.T) {
	f := newFixture(t, miniredis.RunT(t).Addr(), func(o *Options) { o.Limits.Body = 200 * time.Millisecond }).filled()
	url := f.listening()
	r, w := io.Pipe()
	defer w.Close()
	slow := make(chan string, 1)
	go func() {
		answer, err := http.Post(url+"/get-online-features", "application/json", r)
		if err != nil {
			slow <- err.Error()
			return
		}
		defer answer.Body.Close()
		b, _ := io.ReadAll(answer.Body)
		slow <- answer.Status + " " + string(b)
	}()
	if _, err := io.WriteString(w, `{"features":`); err != nil {
		t.Fatal(err)
	}
	answer, err := http.Post(url+"/get-online-features", "application/json", strings.NewReader(`{"features":["all:n"],"entities":{"a":["x"],"b":[1]}}`))
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("beside a slow client: %v, %v", answer, err)
	}
	answer.Body.Close()
	if got := <-slow; !strings.HasPrefix(got, "408 ") || !strings.Contains(got, codeSlow) {
		t.Errorf("the slow client got %s", got)
	}
	answer, err = http.Post(url+"/get-online-features", "application/json", strings.NewReader(strings.Repeat(" ", 1<<20+1)))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if b, _ := io.ReadAll(answer.Body); answer.StatusCode != http.StatusRequestEntityTooLarge || !strings.Contains(string(b), codeTooLarge) {
		t.Errorf("a large body: %s %s", answer.Status, b)
	}
}
