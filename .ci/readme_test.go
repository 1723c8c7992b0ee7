// What holds the READMEs to their words. .ci/run puts this file beside a copy of the program, whose
// tests have the helpers.

package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
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
var fence = regexp.MustCompile("(?ms)^```(console|diff|go|python)\n(.*?)^```$")

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
	`(?: -X (\w+))?(?: -H '(.*?)')?(?: --json '(.*?)')? localhost:8000(/\S*)$`)

// curl does what curl would do with a README's command.
func (s *stage) curl(t *testing.T, command string) string {
	t.Helper()
	m := curlLine.FindStringSubmatch(command)
	if m == nil {
		t.Fatalf("%s: the test only understands %s", command, curlLine)
	}
	include, timed, method, header, body, path := m[1], m[2], m[3], cmp.Or(m[4], "Accept: */*"), m[5], m[6]
	if body != "" {
		method, header = "POST", header+"\r\nContent-Type: application/json"
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

func TestReadmeTranscriptsAreTrue(t *testing.T) {
	text := read(t, "README.md")
	bubble(t, func(t *testing.T) {
		_, s := appStage(t, roomy, discard)
		lastID := ""
		for _, part := range strings.Split(text, "\n$ curl ")[1:] {
			part, _, _ = strings.Cut(part, "\n```")
			command, want, _ := strings.Cut("curl "+part, "\n")
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

// snippetName finds a snippet's file name, and the file it goes with: a lesson, or the app.
var snippetName = regexp.MustCompile(`^// (\w+\.go), beside (the app|\w+\.go)`)

// TestReadmeGoCodeWorks checks that every Go snippet is copied verbatim from the program, compiles beside the lesson in
// its first line, or belongs to the example. The example turns the program into the reader's own, as the README says:
// renamed, with a model, a route, a kind, a hook and a test. All tests must then pass.
func TestReadmeGoCodeWorks(t *testing.T) {
	text, program := read(t, "README.md"), ""
	files := map[string]string{"go.mod": "module example.com/mine\n\ngo 1.26\n", "main_test.go": read(t, "main_test.go")}
	for _, name := range []string{"main.go", "router.go", "errors.go", "tasks.go", "lifecycle.go"} {
		files[name] = read(t, name)
		program += files[name]
	}
	for _, m := range regexp.MustCompile(`\n\$ echo '(.*)' > (\w+\.json)\n`).FindAllStringSubmatch(text, -1) {
		files[m[2]] = m[1]
	}
	added, marks := regexp.MustCompile(`(?m)^\+.*\n`), regexp.MustCompile(`(?m)^[ +]`)
	for i, m := range fence.FindAllStringSubmatch(text, -1) {
		language, code, name := m[1], m[2], snippetName.FindStringSubmatch(m[2])
		switch {
		case language == "diff":
			for _, hunk := range strings.Split(code, "@@")[1:] {
				_, hunk, _ = strings.Cut(hunk, "\n") // after @@ is the hunk's place
				old := marks.ReplaceAllString(added.ReplaceAllString(hunk, ""), "")
				if strings.Count(files["main.go"], old) != 1 {
					t.Fatalf("main.go does not have exactly one place for\n%s", hunk)
				}
				files["main.go"] = strings.Replace(files["main.go"], old, marks.ReplaceAllString(hunk, ""), 1)
			}
		case language != "go":
		case name == nil:
			if !strings.Contains(program, code) {
				t.Errorf("not in the program:\n%s", code)
			}
		case name[2] == "the app":
			files[name[1]] = code
		default:
			alone := fmt.Sprintf("snippet%d/", i)
			files[alone+name[1]], files[alone+name[2]] = code, read(t, name[2])
		}
	}
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		fatalIf(t, os.MkdirAll(filepath.Dir(path), 0o700))
		fatalIf(t, os.WriteFile(path, []byte(content), 0o600))
	}
	for _, args := range []string{"vet ./...", "test -count=1 ."} {
		cmd := exec.CommandContext(t.Context(), "go", strings.Fields(args)...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOFLAGS=") // not those of the outer go test
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %s: %v\n%s", args, err, brief(string(out)))
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
