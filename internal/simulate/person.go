package simulate

import "strconv"

// A person is what a contact is from birth and what few events change: the contact's name, where they are, and which
// system and company they belong to. Only indexes into the tables of names.go are kept.
type person struct {
	number   int   // from 1; names the contact in every id
	first    uint8 // of firstNames
	last     uint8 // of lastNames
	locale   uint8 // of locales
	system   uint8 // of contactSources
	domain   uint8 // of domains
	phones   uint8 // phone numbers had before
	accounts int   // companies in all
}

func newPerson(seed uint64, index, contacts int) person {
	r := newSource(seed, forPerson, uint64(index))
	return person{
		number:   index + 1,
		first:    uint8(r.below(len(firstNames))),
		last:     uint8(r.below(len(lastNames))),
		locale:   uint8(r.below(len(locales))),
		system:   uint8(r.below(len(contactSources))),
		domain:   uint8(r.below(len(domains))),
		accounts: contacts/contactsPerAccount + 1,
	}
}

// contactsPerAccount is how many contacts work for one company on average.
const contactsPerAccount = 3

func (p *person) appendContactID(dst []byte) []byte {
	return strconv.AppendInt(append(dst, 'c'), int64(p.number), 10)
}

// appendAccountID appends the company's id: companies are dealt out evenly, not to neighbours in number.
func (p *person) appendAccountID(dst []byte) []byte {
	return strconv.AppendInt(append(dst, 'a'), int64(p.number*7919%p.accounts)+1, 10)
}

func (p *person) appendOpportunityID(dst []byte, deal uint32) []byte {
	dst = strconv.AppendInt(append(dst, 'o'), int64(p.number), 10)
	return strconv.AppendUint(append(dst, '-'), uint64(deal), 10)
}

func (p *person) appendEngagementID(dst []byte, engagement uint32) []byte {
	dst = strconv.AppendInt(append(dst, 'e'), int64(p.number), 10)
	return strconv.AppendUint(append(dst, '-'), uint64(engagement), 10)
}

// appendEmail appends an address that no two contacts share, under a domain reserved for examples (RFC 2606).
func (p *person) appendEmail(dst []byte) []byte {
	dst = append(dst, firstNames[p.first].ascii...)
	dst = append(dst, '.')
	dst = append(dst, lastNames[p.last].ascii...)
	dst = append(dst, '.')
	dst = strconv.AppendInt(dst, int64(p.number), 10)
	dst = append(dst, '@')
	return append(dst, domains[p.domain]...)
}

// appendPhone appends a number in the form of E.164: nine digits behind the country's code, no zero first.
func (p *person) appendPhone(dst []byte, seed uint64) []byte {
	dst = append(dst, locales[p.locale].calling...)
	digits := mix(seed, forPerson, uint64(p.number)<<8|uint64(p.phones))%900_000_000 + 100_000_000
	return strconv.AppendUint(dst, digits, 10)
}
