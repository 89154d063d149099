// Renders the charts with Go's text/template and sprig, which are what Helm renders with, and the few functions and objects that
// Helm adds: for where there is no Helm. It is no Helm: dependencies are taken from a given directory, lookup finds nothing, and
// random values are always the same.
//
//	GO111MODULE=off GOPATH=/usr/share/gocode go run render.go [-subchart DIR] [-release NAME] CHART [VALUES]
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"github.com/ghodss/yaml"
)

type values = map[string]interface{}

// As Helm shows Chart.yaml to templates.
type chart struct {
	Name, Version, AppVersion, KubeVersion, Type string
}

type versions []string

func (v versions) Has(string) bool { return true }

func check(err error, what string) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
		os.Exit(1)
	}
}

func load(path string, out interface{}) {
	text, err := os.ReadFile(path)
	check(err, path)
	check(yaml.Unmarshal(text, out), path)
}

// What a user gives wins; null takes a default away; maps are merged, all else is replaced.
func merge(defaults, given values) values {
	out := values{}
	for k, v := range defaults {
		out[k] = v
	}
	for k, v := range given {
		below, isMap := v.(values)
		old, wasMap := out[k].(values)
		switch {
		case v == nil:
			delete(out, k)
		case isMap && wasMap:
			out[k] = merge(old, below)
		default:
			out[k] = v
		}
	}
	return out
}

func functions(t *template.Template) template.FuncMap {
	f := sprig.TxtFuncMap()
	delete(f, "env")
	delete(f, "expandenv")
	execute := func(t *template.Template, name string, data interface{}) (string, error) {
		var b strings.Builder
		err := t.ExecuteTemplate(&b, name, data)
		return b.String(), err
	}
	f["include"] = func(name string, data interface{}) (string, error) { return execute(t, name, data) }
	f["tpl"] = func(text string, data interface{}) (string, error) {
		c, err := t.Clone()
		if err != nil {
			return "", err
		}
		if _, err = c.New("tpl").Parse(text); err != nil {
			return "", err
		}
		return execute(c, "tpl", data)
	}
	f["toYaml"] = func(v interface{}) string {
		text, err := yaml.Marshal(v)
		check(err, "toYaml")
		return strings.TrimSuffix(string(text), "\n")
	}
	f["fromYaml"] = func(text string) (values, error) {
		v := values{}
		return v, yaml.Unmarshal([]byte(text), &v)
	}
	f["required"] = func(why string, v interface{}) (interface{}, error) {
		if v == nil || v == "" {
			return nil, fmt.Errorf("%s", why)
		}
		return v, nil
	}
	f["lookup"] = func(...string) values { return values{} }
	f["randAlphaNum"] = func(n int) string { return strings.Repeat("r", n) }
	return f
}

func main() {
	subdir := flag.String("subchart", "", "a chart that this one depends on")
	release := flag.String("release", "test", "name of the release")
	notes := flag.Bool("notes", false, "only NOTES.txt")
	flag.Parse()
	dir := flag.Arg(0)
	var given, defaults values
	if flag.NArg() > 1 {
		load(flag.Arg(1), &given)
	}
	load(filepath.Join(dir, "values.yaml"), &defaults)
	all := merge(defaults, given)

	root := template.New("")
	root.Option("missingkey=error") // Helm's lint --strict; its default is to go on
	root.Funcs(functions(root))
	var names []string
	scope := map[string]values{}
	add := func(dir string, v values) {
		var about struct {
			Name, Version, AppVersion, KubeVersion, Type string
		}
		load(filepath.Join(dir, "Chart.yaml"), &about)
		files, err := filepath.Glob(filepath.Join(dir, "templates", "*"))
		check(err, dir)
		for _, path := range files {
			text, err := os.ReadFile(path)
			check(err, path)
			name := filepath.Join(about.Name, "templates", filepath.Base(path))
			_, err = root.New(name).Parse(string(text))
			check(err, path)
			scope[name] = values{
				"Values":       v,
				"Chart":        chart(about),
				"Release":      values{"Name": *release, "Namespace": "default", "Service": "Helm", "IsInstall": true, "IsUpgrade": false, "Revision": 1},
				"Capabilities": values{"KubeVersion": values{"Version": "v1.29.0", "Major": "1", "Minor": "29"}, "APIVersions": versions{}},
				"Template":     values{"Name": name, "BasePath": about.Name + "/templates"},
			}
			if strings.HasPrefix(filepath.Base(path), "_") || (filepath.Base(path) == "NOTES.txt") != *notes {
				continue
			}
			names = append(names, name)
		}
	}
	if *subdir != "" {
		var below values
		load(filepath.Join(*subdir, "values.yaml"), &below)
		mine, _ := all["tiercel"].(values)
		below = merge(below, mine)
		all["tiercel"] = below
		add(*subdir, below)
	}
	add(dir, all)
	sort.Strings(names)
	for _, name := range names {
		var b strings.Builder
		check(root.ExecuteTemplate(&b, name, scope[name]), name)
		text := strings.TrimSpace(b.String())
		if text == "" {
			continue
		}
		if *notes {
			fmt.Println(text)
		} else {
			fmt.Printf("---\n# Source: %s\n%s\n", name, text)
		}
	}
}
