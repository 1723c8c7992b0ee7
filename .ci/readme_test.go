// What holds the READMEs to their words. .ci/run puts this file beside a copy of the program, whose
// tests have the helpers.

package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// fence finds a code block's language and content. Text diagrams don't count: their words are translated.
var fence = regexp.MustCompile("(?ms)^```(console|diff|go|haproxy|nginx|python)\n(.*?)^```$")

// wantLines compares two texts and reports the first line that differs.
func wantLines(t *testing.T, what, got, want string) {
	t.Helper()
	gots, wants := strings.Split(got+"\n(the end)", "\n"), strings.Split(want+"\n(the end)", "\n")
	for i := range min(len(gots), len(wants)) {
		if gots[i] != wants[i] {
			t.Errorf("%s, line %d:\ngot  %s\nwant %s", what, i+1, brief(gots[i]), brief(wants[i]))
			return
		}
	}
}

func TestReadmesHaveTheSameCode(t *testing.T) {
	english := fence.FindAllString(read(t, "README.md"), -1)
	korean := fence.FindAllString(read(t, "README.ko.md"), -1)
	if len(english) < 20 {
		t.Errorf("found only %d code blocks", len(english))
	}
	wantLines(t, "the code in Korean", strings.Join(korean, "\n"), strings.Join(english, "\n"))
}

var idShape = regexp.MustCompile(`\b[a-z2-7]{8}-[1-9]\d*\b`)

// volatile matches what varies between runs: ids, times, and the Content-Length that depends on them.
var volatile = regexp.MustCompile(idShape.String() + `|\b[0-9a-f]{16}\b|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z` +
	`|\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT|\.\d{6} s\b|Content-Length: \d+`)

func shapeOf(transcript string) string {
	return strings.TrimSpace(volatile.ReplaceAllString(strings.ReplaceAll(transcript, "\r", ""), "…"))
}

// curlLine matches a command with the options that the READMEs use, in this order.
var curlLine = regexp.MustCompile(`^curl( -i)?( -w '%\{time_total\} s\\n')?` +
	`(?: -X (\w+))?(?: -H '(.*?)')?(?: --json '(.*?)')? '?localhost:8000(/[^\s']*)'?$`)

// curl does what curl would do with a README's command.
func (s *stage) curl(t *testing.T, command string) string {
	t.Helper()
	m := curlLine.FindStringSubmatch(command)
	if m == nil {
		t.Fatalf("%s: the test only understands %s", command, curlLine)
	}
	include, timed, method, header, body, path := m[1], m[2], m[3], cmp.Or(m[4], "Accept: */*"), m[5], m[6]
	if body != "" {
		method, header = cmp.Or(method, "POST"), header+"\r\nContent-Type: application/json"
	}
	begin := time.Now()
	conn, err := s.Dial(t.Context(), "", "")
	fatalIf(t, err)
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: localhost:8000\r\n%s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		cmp.Or(method, "GET"), path, header, len(body), body)
	raw, err := io.ReadAll(conn)
	fatalIf(t, err)
	reply := strings.Replace(string(raw), "Connection: close\r\n", "", 1) // sent only by this test
	if include == "" {
		_, reply, _ = strings.Cut(reply, "\r\n\r\n")
	}
	if timed != "" {
		reply += fmt.Sprintf("%f s\n", time.Since(begin).Seconds())
	}
	return reply
}

// example matches the commands for the examples, which only the reader's own program knows.
var example = regexp.MustCompile(`:8000/todos|"infer"`)

// TestReadmeTranscriptsAreTrue plays the curl commands. In the reader's own program (see
// TestReadmeExamplesWork) it plays those of its examples too.
func TestReadmeTranscriptsAreTrue(t *testing.T) {
	text := read(t, "README.md")
	_, mine := (&app{}).kinds()["infer"]
	bubble(t, func(t *testing.T) {
		_, s := appStage(t, roomy, discard)
		lastID := ""
		for _, part := range strings.Split(text, "\n$ curl ")[1:] {
			part, _, _ = strings.Cut(part, "\n```")
			part, _, _ = strings.Cut(part, "\n$ ")
			command, want, _ := strings.Cut("curl "+part, "\n")
			if !mine && example.MatchString(command) {
				continue
			}
			command = regexp.MustCompile(`q3k5wdzb-\d+`).ReplaceAllString(command, lastID) // an id of this run
			got := s.curl(t, command)
			wantLines(t, command, shapeOf(got), shapeOf(want))
			lastID = cmp.Or(idShape.FindString(got), lastID)
		}
		if lastID == "" {
			t.Error("found no transcript with a task")
		}
	})
}

// A files is a Go program: names and contents.
type files map[string]string

// copied returns the program and its tests, in a module that the reader has renamed.
func copied(t *testing.T) files {
	p := files{"go.mod": "module example.com/mine\n\ngo 1.26\n"}
	for _, name := range []string{"main.go", "router.go", "errors.go", "tasks.go", "lifecycle.go", "main_test.go"} {
		p[name] = read(t, name)
	}
	return p
}

// replace changes a text that a file has exactly once.
func (p files) replace(t *testing.T, name, old, new string) {
	t.Helper()
	if n := strings.Count(p[name], old); n != 1 {
		t.Fatalf("%s has %d places, not one, for\n%s", name, n, old)
	}
	p[name] = strings.Replace(p[name], old, new, 1)
}

// apply applies a README's diff of main.go. A hunk has no line numbers: its old lines are its place.
func (p files) apply(t *testing.T, diff string) {
	t.Helper()
	for _, hunk := range strings.Split("\n"+diff, "\n@@")[1:] {
		var old, new strings.Builder
		_, hunk, _ = strings.Cut(hunk, "\n") // after @@ is a name for the place
		for line := range strings.Lines(strings.TrimSuffix(hunk, "\n") + "\n") {
			if line[0] != '+' {
				old.WriteString(strings.TrimPrefix(strings.TrimPrefix(line, " "), "-"))
			}
			if line[0] != '-' {
				new.WriteString(strings.TrimPrefix(strings.TrimPrefix(line, " "), "+"))
			}
		}
		p.replace(t, "main.go", old.String(), new.String())
	}
}

// run writes the program to a new folder and runs a go command there.
func (p files) run(t *testing.T, args string) (output string, err error) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range p {
		path := filepath.Join(dir, name)
		fatalIf(t, os.MkdirAll(filepath.Dir(path), 0o700))
		fatalIf(t, os.WriteFile(path, []byte(content), 0o600))
	}
	cmd := exec.CommandContext(t.Context(), "go", strings.Fields(args)...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOFLAGS=") // not those of the outer go test
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// mustWork vets and tests the program.
func (p files) mustWork(t *testing.T) {
	t.Helper()
	for _, args := range []string{"vet ./...", "test -count=1 ."} {
		if out, err := p.run(t, args); err != nil {
			t.Fatalf("go %s: %v\n%s", args, err, brief(out))
		}
	}
}

// snippetName finds a snippet's file name, and the file it goes with: a lesson, the app or none.
var snippetName = regexp.MustCompile(`^// (\w+\.go), (?:beside (the app|\w+\.go)|(on its own))`)

// TestReadmeSnippetsWork checks that every Go snippet is copied verbatim from the program, or
// compiles beside the lesson in its first line, or on its own. The app's are TestReadmeExamplesWork's.
func TestReadmeSnippetsWork(t *testing.T) {
	p := files{"go.mod": "module example.com/mine\n\ngo 1.26\n"}
	code := strings.Join(slices.Collect(maps.Values(copied(t))), "\n")
	for i, m := range fence.FindAllStringSubmatch(read(t, "README.md"), -1) {
		language, snippet, name := m[1], m[2], snippetName.FindStringSubmatch(m[2])
		switch {
		case language != "go":
		case name == nil:
			if !strings.Contains(code, snippet) {
				t.Errorf("not in the program:\n%s", snippet)
			}
		case name[2] != "the app":
			dir := fmt.Sprintf("snippet%d/", i)
			p[dir+name[1]] = snippet
			if name[2] != "" {
				p[dir+name[2]] = read(t, name[2])
			}
		}
	}
	if out, err := p.run(t, "vet ./..."); err != nil {
		t.Fatalf("go vet: %v\n%s", err, brief(out))
	}
}

// TestReadmeExamplesWork makes the program the reader's own, as the README says: new files beside
// the app, and diffs of main.go. All its tests pass then, and its transcripts are true.
func TestReadmeExamplesWork(t *testing.T) {
	p, text := copied(t), read(t, "README.md")
	for _, m := range regexp.MustCompile(`\n\$ echo '(.*)' > (\w+\.json)\n`).FindAllStringSubmatch(text, -1) {
		p[m[2]] = m[1]
	}
	for _, m := range fence.FindAllStringSubmatch(text, -1) {
		if name := snippetName.FindStringSubmatch(m[2]); name != nil && name[2] == "the app" {
			p[name[1]] = m[2]
		}
		if m[1] == "diff" && !strings.Contains(m[2], "\n-") {
			p.apply(t, m[2])
		}
	}
	p["README.md"], p["readme_test.go"] = text, read(t, "readme_test.go")
	if out, err := p.run(t, "test -count=1 -run=TestReadmeTranscriptsAreTrue ."); err != nil {
		t.Errorf("the transcripts: %v\n%s", err, brief(out))
	}
	delete(p, "readme_test.go")
	p.mustWork(t)
}

// TestReadmeProgramWorksWithoutTheDemo takes out what the README says: the blocks, and the lines of its diff.
func TestReadmeProgramWorksWithoutTheDemo(t *testing.T) {
	p := copied(t)
	for _, name := range []string{"main.go", "main_test.go"} {
		before, _, found := strings.Cut(p[name], "\n// ---- the demo")
		if !found {
			t.Errorf("%s has no block of the demo", name)
		}
		p[name] = before
	}
	for _, m := range fence.FindAllStringSubmatch(read(t, "README.md"), -1) {
		if m[1] == "diff" && strings.Contains(m[2], "\n-") {
			p.apply(t, m[2])
		}
	}
	// The README leaves the imports to the editor.
	for name := range p {
		for !strings.HasSuffix(name, ".mod") {
			out, _ := p.run(t, "vet .")
			unused := regexp.MustCompile(`(?m)` + regexp.QuoteMeta(name) + `:\d+:\d+: ("[^"]*") imported and not used`).FindStringSubmatch(out)
			if unused == nil {
				break
			}
			p.replace(t, name, "\n\t"+unused[1]+"\n", "\n")
		}
	}
	p.mustWork(t)
}

// TestReadmeExercisesNameTheirTests does the exercises, and compares the tests that fail with those
// that the READMEs name.
func TestReadmeExercisesNameTheirTests(t *testing.T) {
	type edit struct{ name, old, new string }
	for number, edits := range map[int][]edit{
		1: {{"main.go", "\troot.Include(users)\n", `	users.Handle(http.MethodPut, "/{username}", Endpoint(func(w http.ResponseWriter, r *http.Request) error {
		var body map[string]any
		if err := ReadJSON(w, r, &body); err != nil {
			return err
		}
		return WriteJSON(w, http.StatusOK, body)
	}))
	root.Include(users)
`}},
		2: {{"main.go", "\troot.Include(users)\n", `	users.Use(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Powered-By", "Go")
			next.ServeHTTP(w, r)
		})
	})
	root.Include(users)
`}},
		3: {{"main.go", "\ttasks     *Tasks\n", "\ttasks     *Tasks\n\trecent    recent\n"},
			{"main.go", "a := &app{", "a := &app{recent: recent{tasks: map[string][]time.Time{}}, "},
			{"main.go", "// app holds", `type recent struct {
	sync.Mutex
	tasks map[string][]time.Time
}

// app holds`}, {"main.go", "\t\"sync/atomic\"\n", "\t\"sync\"\n\t\"sync/atomic\"\n"},
			{"main.go", "\ttask, err := a.tasks.Submit(body.Kind, body.Input)\n", `	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	a.recent.Lock()
	times := slices.DeleteFunc(a.recent.tasks[host], func(at time.Time) bool { return time.Since(at) > time.Minute })
	a.recent.tasks[host] = append(times, time.Now())
	a.recent.Unlock()
	if len(times) >= 3 {
		e := Errorf(http.StatusTooManyRequests, "three tasks a minute are enough")
		e.Header.Set("Retry-After", "60")
		return e
	}
	task, err := a.tasks.Submit(body.Kind, body.Input)
`}},
		4: {{"main.go", "\t\t\"primes\": kindOf(", `		"absent": {Run: func(context.Context, Task, func(float64)) (any, error) {
			return nil, Errorf(http.StatusNotFound, "there is no such thing")
		}},
		"primes": kindOf(`}},
		7: {{"errors.go", "Status: http.StatusInternalServerError}", "Status: http.StatusInternalServerError, Detail: err.Error()}"}},
	} {
		named := map[string][]string{}
		for _, readme := range []string{"README.md", "README.ko.md"} {
			line := regexp.MustCompile(fmt.Sprintf(`(?m)^%d\. .*$`, number)).FindString(read(t, readme))
			named[readme] = slices.Sorted(slices.Values(regexp.MustCompile(`Test\w+`).FindAllString(line, -1)))
		}
		want := named["README.md"]
		wantEqual(t, fmt.Sprint("the tests in Korean, exercise ", number), named["README.ko.md"], want)
		p := copied(t)
		for _, e := range edits {
			p.replace(t, e.name, e.old, e.new)
		}
		out, err := p.run(t, "test -count=1 .")
		var got []string
		for _, m := range regexp.MustCompile(`(?m)^--- FAIL: (\w+)`).FindAllStringSubmatch(out, -1) {
			got = append(got, m[1])
		}
		slices.Sort(got)
		if !slices.Equal(got, want) || (err == nil) != (len(want) == 0) {
			t.Errorf("exercise %d: red are %v, the README names %v: %v\n%s", number, got, want, err, brief(out))
		}
	}
}

// TestReadmesListEveryFlagAndRoute checks the tables: each flag with its default, each method with
// its path.
func TestReadmesListEveryFlagAndRoute(t *testing.T) {
	oneFlag := regexp.MustCompile(`(?m)^  (-\S+).*\n.*?(?:\(default "?([^")]*)"?\))?$`)
	oneRow := regexp.MustCompile("(?m)^\\| `?(-\\w+|[A-Z]+)`? \\| `?([^`|, ]*)")
	var usage bytes.Buffer
	run(t.Context(), []string{"-h"}, &usage)
	var there []string
	for _, m := range oneFlag.FindAllStringSubmatch(usage.String(), -1) {
		there = append(there, m[1]+" "+m[2])
	}
	for _, r := range (&app{}).routes().Routes() {
		there = append(there, r.Method+" "+r.Path)
	}
	slices.Sort(there)
	workers := strconv.Itoa(max(1, runtime.GOMAXPROCS(0)-1))
	for _, name := range []string{"README.md", "README.ko.md"} {
		var listed []string
		text := strings.ReplaceAll(read(t, name), "| GOMAXPROCS − 1", "| "+workers)
		for _, m := range oneRow.FindAllStringSubmatch(text, -1) {
			listed = append(listed, m[1]+" "+m[2])
		}
		slices.Sort(listed)
		wantLines(t, "what "+name+" lists, sorted", strings.Join(listed, "\n"), strings.Join(there, "\n"))
	}
}
