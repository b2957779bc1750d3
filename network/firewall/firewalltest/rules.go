package firewalltest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// modules are the options of matches and targets that rules of ours have; true:
// with a value. "" are those of every rule.
func modules() map[string]map[string]bool {
	ports := map[string]bool{"--dport": true, "--sport": true}
	return map[string]map[string]bool{
		"":          {"-s": true, "-d": true, "-i": true, "-o": true, "-p": true, "-m": true, "-j": true, "-g": true},
		"tcp":       {"--dport": true, "--sport": true, "--tcp-flags": true},
		"udp":       ports,
		"addrtype":  {"--src-type": true, "--dst-type": true},
		"comment":   {"--comment": true},
		"conntrack": {"--ctstate": true, "--ctorigdst": true, "--ctorigdstport": true},
		"icmp":      {"--icmp-type": true},
		"icmp6":     {"--icmpv6-type": true},
		"limit":     {"--limit": true, "--limit-burst": true},
		"rpfilter":  {"--invert": false, "--loose": false},
		// Targets. Those without options are in verdicts.
		"DNAT":       {"--to-destination": true},
		"MASQUERADE": {"--random-fully": false},
		"REJECT":     {"--reject-with": true},
	}
}

// verdicts are targets that are no chains, with the tables that have them; none:
// all have.
func verdicts() map[string][]string {
	return map[string][]string{
		"ACCEPT": nil, "DROP": nil, "RETURN": nil, "DNAT": {"nat"}, "MASQUERADE": {"nat"}, "REJECT": {"filter"},
	}
}

// words splits a rule as iptables-restore does.
func words(rule string) (all []string, err error) {
	var word strings.Builder
	in, inside := false, false
	for i := 0; i < len(rule); i++ {
		switch c := rule[i]; {
		case inside && c == '\\' && i+1 < len(rule):
			i++
			word.WriteByte(rule[i])
		case c == '"':
			inside, in = !inside, true
		case c == ' ' && !inside:
			if in {
				all = append(all, word.String())
			}
			word.Reset()
			in = false
		default:
			word.WriteByte(c)
			in = true
		}
	}
	if inside {
		return nil, errParameter("an unclosed quote")
	}
	if in {
		all = append(all, word.String())
	}
	return all, nil
}

// target is the chain or verdict that a rule leads to, or "".
func target(rule string) string {
	all, err := words(rule)
	if err != nil {
		return ""
	}
	for i := 0; i+1 < len(all); i++ {
		switch all[i] {
		case "-j", "-g":
			return all[i+1]
		case "--comment":
			i++ // it may say anything
		}
	}
	return ""
}

// check refuses what is no rule of the table and returns it as iptables-save
// prints it, as far as quotes go.
func (t *table) check(rule string) (string, error) {
	all, err := words(rule)
	if err != nil {
		return "", err
	}
	known, options := modules(), map[string]bool{}
	allow := func(module string) {
		maps.Copy(options, known[module])
	}
	allow("")
	text := make([]string, 0, len(all))
	for i := 0; i < len(all); i++ {
		option := all[i]
		text = append(text, option)
		if option == "!" {
			if i+1 == len(all) || all[i+1] == "!" {
				return "", errParameter("nothing is inverted")
			}
			continue
		}
		value, ok := options[option]
		if !ok {
			return "", errParameter(fmt.Sprintf("unknown option %q", option))
		}
		for range count(option, value) {
			if i++; i == len(all) {
				return "", errParameter(fmt.Sprintf("option %q requires an argument", option))
			}
			if option == "--comment" {
				if len(all[i]) > commentLimit {
					return "", errParameter("comment too long")
				}
				text = append(text, quote(all[i]))
				continue
			}
			text = append(text, all[i])
		}
		switch option {
		case "-m":
			if known[all[i]] == nil {
				return "", errParameter(fmt.Sprintf("couldn't load match `%s'", all[i]))
			}
			allow(all[i])
		case "-j", "-g":
			if err := t.leads(all[i]); err != nil {
				return "", err
			}
			allow(all[i])
		}
	}
	return strings.Join(text, " "), nil
}

// count is how many values an option has.
func count(option string, value bool) int {
	switch {
	case option == "--tcp-flags":
		return 2
	case value:
		return 1
	}
	return 0
}

// leads tells whether rules of the table can lead to a chain or verdict.
func (t *table) leads(to string) error {
	if in, verdict := verdicts()[to]; verdict {
		if len(in) > 0 && !slices.Contains(in, t.name) {
			return fmt.Errorf("%s: only valid in %s table", to, in[0])
		}
		return nil
	}
	if _, there := t.chains[to]; !there || t.policies[to] != "" {
		return errParameter(fmt.Sprintf("Couldn't load target `%s'", to))
	}
	return nil
}

// quote writes a comment as iptables-save does.
func quote(text string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
	if text != "" && strings.Trim(text, plain) == "" {
		return text
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `'`, `\'`).Replace(text) + `"`
}
