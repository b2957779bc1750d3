package report

// SuiteName names a suite.
type SuiteName string

// The suites, in the order they are run.
const (
	Life     SuiteName = "life"
	List     SuiteName = "list"
	Parallel SuiteName = "parallel"
	Idle     SuiteName = "idle"
	Events   SuiteName = "events"
	Logs     SuiteName = "logs"
	Ports    SuiteName = "ports"
	DNS      SuiteName = "dns"
	Firewall SuiteName = "firewall"
	Packets  SuiteName = "packets"
)

// Suites are all suites.
func Suites() []SuiteName {
	return []SuiteName{Life, List, Parallel, Idle, Events, Logs, Ports, DNS, Firewall, Packets}
}

// Rows of Life.
const (
	CreatePort    Row = "create→port"
	CreateRunning Row = "create→running"
	Exec          Row = "exec true"
	StopDelete    Row = "stop+delete"
)

// Rows of List: one call that answers all there are, and one that answers a
// page of 50 of them.
const (
	List1       Row = "all of 1"
	List50      Row = "all of 50"
	List200     Row = "all of 200"
	List500     Row = "all of 500"
	Page50Of50  Row = "50 of 50"
	Page50Of200 Row = "50 of 200"
	Page50Of500 Row = "50 of 500"
)

// Rows of Parallel: fifty creates, then fifty deletes, so many at once.
const (
	Create1 Row = "create, 1"
	Create4 Row = "create, 4"
	Create8 Row = "create, 8"
	Delete1 Row = "delete, 1"
	Delete4 Row = "delete, 4"
	Delete8 Row = "delete, 8"
)

// Rows of Idle: memory is the sum of the proportional set sizes of all
// processes but those in containers, CPU what they use of one CPU.
const (
	Memory0   Row = "MiB with 0"
	Memory100 Row = "MiB with 100"
	CPU0      Row = "CPU % with 0"
	CPU100    Row = "CPU % with 100"
)

// Death is the row of Events: from the end of a process until the API's stream
// says so.
const Death Row = "end→told"

// Rows of Logs.
const (
	LogRate     Row = "one, MB/s"           // what a container gets rid of that writes all it can
	LogPaced    Row = "at 50, MB/s"         // what one gets rid of that wants to write 50 MB/s
	LogStall    Row = "at 50, longest ms"   // the longest that one write of it took
	LogTogether Row = "100 at once, MB/s"   // what a hundred get rid of together
	LogSlowest  Row = "100 at once, spread" // the slowest of them: its time to the median time
)

// Rows of Ports: so many host ports found for environments that hold them from
// then on.
const (
	PortsInFives Row = "in fives"
	PortsSingly  Row = "one by one"
)

// Naive is the column of Ports that asks the database and probes for each port.
const Naive = "naive"

// The columns of DNS.
const (
	OurDNS     = "remotegpu-dns"
	LimitedDNS = "remotegpu-dns-limited" // with a rate limit, from which the asker is exempt
	CoreDNS    = "coredns-file"
)

// Rows of DNS: answers per second, the 99th percentile at a fixed rate, and
// questions without an answer.
const (
	UDPRate Row = "UDP, 1000/s"
	UDPCost Row = "UDP, µs CPU" // that the server uses for an answer
	UDPTime Row = "UDP, p99 ms"
	UDPLost Row = "UDP, lost"
	TCPRate Row = "TCP, 1000/s"
	TCPCost Row = "TCP, µs CPU"
	TCPTime Row = "TCP, p99 ms"
	TCPLost Row = "TCP, lost"
)

// rowsOf are the rows of a suite in the order of its table.
func rowsOf(suite SuiteName) []Row {
	switch suite {
	case Life:
		return []Row{CreatePort, CreateRunning, Exec, StopDelete}
	case List:
		return []Row{List1, List50, List200, List500, Page50Of50, Page50Of200, Page50Of500}
	case Parallel:
		return []Row{Create1, Create4, Create8, Delete1, Delete4, Delete8}
	case Idle:
		return []Row{Memory0, Memory100, CPU0, CPU100}
	case Events:
		return []Row{Death}
	case Ports:
		return []Row{PortsInFives, PortsSingly}
	case Firewall:
		return []Row{AddNFT, SetNFT, RefusedNFT, HealNFT, AddLegacy, SetLegacy, RefusedLegacy, HealLegacy}
	case Packets:
		return []Row{HitFirst, HitWorst, HitListed, Miss, HitFirst6, HitWorst6, Miss6}
	case Logs:
		return []Row{LogRate, LogPaced, LogStall, LogTogether, LogSlowest}
	case DNS:
		return []Row{UDPRate, UDPCost, UDPTime, UDPLost, TCPRate, TCPCost, TCPTime, TCPLost}
	}
	return nil
}

// NewSuite makes a suite without columns.
func NewSuite(name SuiteName, title string) *Suite {
	return &Suite{Name: name, Title: title, Rows: rowsOf(name)}
}

// Names are the columns that targets speak of.
type Names struct {
	Of     string // the one that is judged
	Bound  string // the lower bound
	Docker string
}

// targets are what the project has set itself.
func targets(suite SuiteName, names Names) []Target {
	of := func(row Row, to string, atMost float64) Target {
		return Target{Of: Quantity{Column: names.Of, Row: row}, To: &Quantity{Column: to, Row: row}, AtMost: atMost}
	}
	switch suite {
	case Life:
		return []Target{
			of(CreatePort, names.Bound, 1.00), of(CreateRunning, names.Bound, 1.25),
			of(Exec, names.Bound, 1.15), of(StopDelete, names.Bound, 1.25),
			of(CreatePort, names.Docker, 0.55), of(CreateRunning, names.Docker, 0.55), of(StopDelete, names.Docker, 0.40),
		}
	case List:
		return []Target{
			{
				Of: Quantity{Column: names.Of, Row: Page50Of500}, To: &Quantity{Column: names.Of, Row: Page50Of50}, AtMost: 2,
			},
			of(List200, names.Docker, 0.3),
		}
	case Parallel:
		var all []Target
		for _, row := range []Row{Create1, Create4, Create8, Delete1, Delete4, Delete8} {
			all = append(all, of(row, names.Bound, 1.25))
		}
		return all
	case Idle:
		return []Target{
			of(Memory0, names.Docker, 1), of(Memory100, names.Docker, 1), of(CPU0, names.Docker, 1), of(CPU100, names.Docker, 1),
		}
	case Events:
		return []Target{{
			Of: Quantity{Column: names.Of, Row: Death, Stat: P99},
			To: &Quantity{Column: names.Docker, Row: Death, Stat: P99}, AtMost: 1,
		}}
	case Ports:
		// At least fifty times faster, as environments take them.
		return []Target{{
			Of: Quantity{Column: names.Of, Row: PortsInFives}, To: &Quantity{Column: Naive, Row: PortsSingly}, AtMost: 0.02,
		}}
	case DNS:
		return dnsTargets()
	case Firewall:
		return firewallTargets(names.Of)
	case Packets:
		return packetTargets(names.Of)
	case Logs:
		return []Target{
			{Of: Quantity{Column: names.Of, Row: LogRate}, AtLeast: 50},
			{Of: Quantity{Column: names.Of, Row: LogPaced}, AtLeast: 49}, // it is paced to 50
		}
	}
	return nil
}

func dnsTargets() []Target {
	var all []Target
	for _, row := range []Row{UDPRate, TCPRate} {
		all = append(all, Target{Of: Quantity{Column: OurDNS, Row: row}, To: &Quantity{Column: CoreDNS, Row: row}, AtLeast: 1.5})
	}
	for _, row := range []Row{UDPTime, TCPTime} {
		all = append(all, Target{Of: Quantity{Column: OurDNS, Row: row}, To: &Quantity{Column: CoreDNS, Row: row}, AtMost: 1})
	}
	for _, row := range []Row{UDPLost, TCPLost} {
		all = append(all, Target{Of: Quantity{Column: OurDNS, Row: row}})
	}
	return all
}
