// Package simulate is a deterministic CRM: it makes canonical events of contacts, their deals and what happened around
// them, and hands them over in the order in which they would arrive.
//
// An event passes three stages. A life decides what happens to one contact and when; render writes that as one line of
// JSON; delivery decides when the line arrives, whether it arrives twice, and whether a malformed one follows it.
//
// What holds:
//
//   - the same [Config] gives the same bytes in the same order, on any machine and however many cores it has: numbers
//     come from PCG streams alone, and no clock, no map order and no goroutine has a say;
//   - the life of a contact is a function of the configuration and the contact's number; no other contact touches it;
//   - Duplicates, Late, OutOfOrder and Malformed have random streams of their own, so they change how and when events
//     are delivered, and so received_at, never which good events there are. Deletes changes lives, and so does everything
//     else in Config;
//   - the event times of a contact and its deals rise strictly: no tie is left to a position. Nothing of an entity has
//     an event time after its delete;
//   - a contact event carries the state that the events before it made: open_tickets is tickets opened less tickets
//     closed, a customer has won a deal, a deal's stages come in order;
//   - memory is bounded by the contacts alive and the deliveries held back, not by the events made.
//
// A few habits of real sources are there on purpose: an update may repeat the state it found with a newer updated_at,
// its attributes in another order; a delete carries the key alone; a malformed event has one defect, so that one
// [feature.Reason] and no other refuses it.
//
// It refuses a configuration that it can't keep to, see [Config.Validate], and stops at the first error of its taker.
package simulate
