package report

// The columns of Firewall and Packets, besides ours.
const (
	ByHand     = "by hand"      // the same rules in a file for iptables-restore
	Unique     = "AppendUnique" // go-iptables, rule by rule, into one flat chain
	Append     = "Append"       // the same without a look whether they are there
	OursLegacy = "remotegpu, legacy"
	Map        = "nft map"    // a rule with a map for each protocol, and no other
	OneRule    = "one rule"   // one published port
	Flat       = "flat chain" // rule after rule
	OneLegacy  = "one rule, legacy"
)

// Rows of Firewall, each on both backends of iptables: five ports more, all at
// once, and what is noticed of it.
const (
	AddNFT        Row = "nft: add 5"
	SetNFT        Row = "nft: set all"
	RefusedNFT    Row = "nft: refused"
	HealNFT       Row = "nft: heal 1000"
	AddLegacy     Row = "legacy: add 5"
	SetLegacy     Row = "legacy: set all"
	RefusedLegacy Row = "legacy: refused"
	HealLegacy    Row = "legacy: heal 1000"
)

// Rows of Packets: the median time of a connection.
const (
	HitFirst  Row = "hit, first µs"
	HitWorst  Row = "hit, worst µs"
	HitListed Row = "hit, of few µs" // through a port that few networks reach
	Miss      Row = "miss, µs"
	HitFirst6 Row = "IPv6: first µs"
	HitWorst6 Row = "IPv6: worst µs"
	Miss6     Row = "IPv6: miss µs"
)

// firewallTargets are that a change costs what the same file costs by hand and
// a fraction of rule after rule, that nobody notices it, and that what others
// flush is back at once where the kernel tells (ms), else after a look.
func firewallTargets(of string) []Target {
	to := func(row Row, column string, atMost float64) Target {
		return Target{Of: Quantity{Column: of, Row: row}, To: &Quantity{Column: column, Row: row}, AtMost: atMost}
	}
	return []Target{
		to(AddNFT, ByHand, 1.5), to(AddNFT, Unique, 1.0/40), to(SetNFT, Append, 1.0/90),
		{Of: Quantity{Column: of, Row: RefusedNFT}},
		{Of: Quantity{Column: of, Row: HealNFT}, AtMost: 100},
		to(AddLegacy, ByHand, 1.5), to(AddLegacy, Unique, 1.0/5), to(SetLegacy, Append, 1.0/90),
		{Of: Quantity{Column: of, Row: RefusedLegacy}},
		{Of: Quantity{Column: of, Row: HealLegacy}, AtMost: 2000},
	}
}

// packetTargets are that the worst mapping costs little more than a map, and a
// service of the host little more than with one rule, in both address families.
func packetTargets(of string) (all []Target) {
	at := func(column string, row Row, to string, most float64) Target {
		return Target{Of: Quantity{Column: column, Row: row}, To: &Quantity{Column: to, Row: row}, AtMost: most}
	}
	for _, ours := range []struct{ column, one string }{{of, OneRule}, {OursLegacy, OneLegacy}} {
		all = append(all,
			at(ours.column, HitWorst, Map, 1.3), at(ours.column, Miss, ours.one, 1.2),
			at(ours.column, HitWorst6, Map, 1.3), at(ours.column, Miss6, ours.one, 1.2))
	}
	return all
}
