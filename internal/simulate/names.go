package simulate

// The tables that texts are taken from. Nothing in them needs escaping in JSON; their order and length are part of what
// makes a run reproducible.

type name struct{ text, ascii string }

var firstNames = [...]name{
	{"Ada", "ada"}, {"Zoë", "zoe"}, {"Søren", "soren"}, {"José", "jose"}, {"Anna", "anna"}, {"Mateusz", "mateusz"},
	{"Łukasz", "lukasz"}, {"Chloé", "chloe"}, {"Grace", "grace"}, {"Noah", "noah"}, {"Jürgen", "juergen"}, {"Ángela", "angela"},
	{"Priya", "priya"}, {"Yuki", "yuki"}, {"美咲", "misaki"}, {"Omar", "omar"}, {"Fatima", "fatima"}, {"Ольга", "olga"},
	{"Liam", "liam"}, {"Mia", "mia"}, {"François", "francois"}, {"Elif", "elif"}, {"Ines", "ines"}, {"Björk", "bjork"},
	{"Hannah", "hannah"}, {"Tomás", "tomas"}, {"Kofi", "kofi"}, {"Amara", "amara"}, {"Oliver", "oliver"}, {"Lucía", "lucia"},
	{"Dmitri", "dmitri"}, {"Nadia", "nadia"},
}

var lastNames = [...]name{
	{"Moreno", "moreno"}, {"Müller", "mueller"}, {"O'Brien", "obrien"}, {"Nowak", "nowak"}, {"Jensen", "jensen"},
	{"García", "garcia"}, {"Lefèvre", "lefevre"}, {"佐藤", "sato"}, {"Smith", "smith"}, {"Okafor", "okafor"}, {"Öztürk", "oeztuerk"},
	{"Núñez", "nunez"}, {"Rossi", "rossi"}, {"Kowalczyk", "kowalczyk"}, {"Иванова", "ivanova"}, {"Sharma", "sharma"},
	{"van den Berg", "vandenberg"}, {"Silva", "silva"}, {"Björnsdóttir", "bjornsdottir"}, {"Weiß", "weiss"}, {"Tanaka", "tanaka"},
	{"Haddad", "haddad"}, {"Dvořák", "dvorak"}, {"Lindqvist", "lindqvist"}, {"Jones", "jones"}, {"Mensah", "mensah"},
	{"Dubois", "dubois"}, {"Fernández", "fernandez"}, {"Popescu", "popescu"}, {"Schneider", "schneider"}, {"Brown", "brown"},
	{"Ivanov", "ivanov"},
}

var locales = [...]struct{ text, calling, currency string }{
	{"de-DE", "+49", "EUR"}, {"en-GB", "+44", "GBP"}, {"en-US", "+1", "USD"}, {"fr-FR", "+33", "EUR"}, {"es-ES", "+34", "EUR"},
	{"pl-PL", "+48", "PLN"}, {"da-DK", "+45", "DKK"}, {"ja-JP", "+81", "JPY"}, {"pt-BR", "+55", "BRL"}, {"tr-TR", "+90", "TRY"},
	{"en-IN", "+91", "INR"},
}

var (
	domains        = [...]string{"example.com", "example.org", "mail.example.com"}
	contactSources = [...]string{"salesforce:crm-eu-1", "salesforce:crm-us-1", "hubspot:portal-204"}
	dealSource     = "salesforce:crm-eu-1"
	plans          = [...]string{"free", "starter", "growth", "enterprise"}
	owners         = 60 // sales people

	// segmentNames are in the order of their bits in a contact's segments.
	segmentNames = [...]string{"newsletter", "trial", "webinar", "vip", "beta", "churn-risk"}
)

// Bits of segmentNames with a meaning in a life.
const (
	newsletterSegment = 1 << 0
	vipSegment        = 1 << 3
	churnRiskSegment  = 1 << 5
)

var campaigns = [...]string{
	"spring-launch", "autumn-webinar", "product-update", "win-back", "pricing-change", "onboarding-1", "onboarding-2", "case-study",
}

var emailSubjects = [...]string{
	"What is new this month", "Your invitation", "Three ways to save an hour a day", "A note on pricing", "How others use it",
	"Getting started", "Your trial ends soon", "We would like to hear from you",
}

var ticketSubjects = [...]string{
	"cannot export the report", "login loops after reset", "invoice shows the wrong plan", "import stops at row 500",
	"webhook is slow", "seats are missing", "Größe der Anhänge", "question about permissions",
}

var ticketChannels = [...]string{"web", "email", "phone", "app"}
