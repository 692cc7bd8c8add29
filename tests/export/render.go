// Renders Ollama templates with Go's own text/template: requests as JSON on stdin, texts as JSON on stdout.
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type request struct {
	Template string    `json:"template"`
	Messages []message `json:"messages"`
}

func main() {
	var requests []request
	if err := json.NewDecoder(os.Stdin).Decode(&requests); err != nil {
		panic(err)
	}
	texts := []string{}
	for _, r := range requests {
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(r.Template))
		var system []string
		var messages []*message
		for i := range r.Messages {
			if r.Messages[i].Role == "system" {
				system = append(system, r.Messages[i].Content)
			}
			messages = append(messages, &r.Messages[i])
		}
		var text bytes.Buffer
		values := map[string]any{"System": strings.Join(system, "\n\n"), "Messages": messages, "Response": ""}
		if err := parsed.Execute(&text, values); err != nil {
			panic(err)
		}
		texts = append(texts, text.String())
	}
	if err := json.NewEncoder(os.Stdout).Encode(texts); err != nil {
		panic(err)
	}
}
