package simulate

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// The rows of the Parquet files: nested as the JSON is. A field that an event may lack is optional; a delete has none
// but the key. Each is read from the event's JSON, which gives the types below their own readers.

type envelopeRow struct {
	EventID         string `json:"event_id" parquet:"event_id"`
	EventType       string `json:"event_type" parquet:"event_type,dict"`
	Source          string `json:"source" parquet:"source,dict"`
	OccurredAt      micros `json:"occurred_at" parquet:"occurred_at,timestamp(microsecond)"`
	ReceivedAt      micros `json:"received_at" parquet:"received_at,timestamp(microsecond)"`
	DeliveryAttempt int32  `json:"delivery_attempt" parquet:"delivery_attempt"`
	SchemaVersion   string `json:"schema_version" parquet:"schema_version,dict"`
}

type contactRow struct {
	Envelope envelopeRow `json:"envelope" parquet:"envelope"`
	Payload  struct {
		ContactID  string          `json:"contact_id" parquet:"contact_id"`
		Email      *string         `json:"email" parquet:"email,optional"`
		Phone      *string         `json:"phone" parquet:"phone,optional"`
		Name       *nameRow        `json:"name" parquet:"name,optional"`
		MktStatus  *string         `json:"mkt_status" parquet:"mkt_status,optional,dict"`
		Segments   []string        `json:"segments" parquet:"segments,optional,list"`
		Attributes json.RawMessage `json:"attributes" parquet:"attributes,optional,json"`
		UpdatedAt  *micros         `json:"updated_at" parquet:"updated_at,optional,timestamp(microsecond)"`
		Metadata   *crmRow         `json:"source_metadata" parquet:"source_metadata,optional"`
	} `json:"payload" parquet:"payload"`
}

type nameRow struct {
	First string `json:"first" parquet:"first"`
	Last  string `json:"last" parquet:"last"`
}

type crmRow struct {
	ID  string `json:"crm_id" parquet:"crm_id"`
	URL string `json:"crm_record_url" parquet:"crm_record_url"`
}

type opportunityRow struct {
	Envelope envelopeRow `json:"envelope" parquet:"envelope"`
	Payload  struct {
		OpportunityID string `json:"opportunity_id" parquet:"opportunity_id"`
		AccountID     string `json:"account_id" parquet:"account_id"`
		Stages        struct {
			Current string     `json:"current" parquet:"current,dict"`
			History []stageRow `json:"history" parquet:"history,list"`
		} `json:"stages" parquet:"stages"`
		Amount struct {
			Currency string   `json:"currency" parquet:"currency,dict"`
			Value    decimal4 `json:"value" parquet:"value,decimal(4:18)"`
		} `json:"amount" parquet:"amount"`
		Probability float64 `json:"probability" parquet:"probability"`
		OwnerID     string  `json:"owner_id" parquet:"owner_id,dict"`
		CloseDate   days    `json:"close_date" parquet:"close_date,date"`
		UpdatedAt   micros  `json:"updated_at" parquet:"updated_at,timestamp(microsecond)"`
	} `json:"payload" parquet:"payload"`
}

// stageRow keeps its time as text, as the JSON has it: loam keeps a stage history as JSON, and another way to write the
// same time would be another history.
type stageRow struct {
	Stage     string `json:"stage" parquet:"stage,dict"`
	EnteredAt string `json:"entered_at" parquet:"entered_at"`
}

type engagementRow struct {
	Envelope envelopeRow `json:"envelope" parquet:"envelope"`
	Payload  struct {
		EngagementID string `json:"engagement_id" parquet:"engagement_id"`
		ContactID    string `json:"contact_id" parquet:"contact_id"`
		Type         string `json:"type" parquet:"type,dict"`
		Channel      string `json:"channel" parquet:"channel,dict"`
		Metadata     struct {
			Subject  *string `json:"subject" parquet:"subject,optional"`
			Campaign *string `json:"source_campaign" parquet:"source_campaign,optional,dict"`
		} `json:"metadata" parquet:"metadata"`
		OccurredAt micros `json:"occurred_at" parquet:"occurred_at,timestamp(microsecond)"`
		Outcome    string `json:"outcome" parquet:"outcome,dict"`
	} `json:"payload" parquet:"payload"`
}

// micros is a time in microseconds since 1970 UTC.
type micros int64

func (m *micros) UnmarshalJSON(raw []byte) error {
	t, err := time.Parse(`"`+time.RFC3339Nano+`"`, string(raw))
	*m = micros(t.UnixMicro())
	return err
}

// days is a date in days since 1970.
type days int32

func (d *days) UnmarshalJSON(raw []byte) error {
	t, err := time.Parse(`"`+time.DateOnly+`"`, string(raw))
	*d = days(t.Unix() / (millisecondsADay / 1000))
	return err
}

// decimal4 is a decimal in 10,000ths.
type decimal4 int64

func (d *decimal4) UnmarshalJSON(raw []byte) error {
	whole, fraction, _ := strings.Cut(string(raw), ".")
	if len(fraction) > 4 {
		return fmt.Errorf("%s has more than four decimals", raw)
	}
	n, err := strconv.ParseInt(whole+fraction+"0000"[len(fraction):], 10, 64)
	*d = decimal4(n)
	return err
}

var (
	_ json.Unmarshaler = (*micros)(nil)
	_ json.Unmarshaler = (*days)(nil)
	_ json.Unmarshaler = (*decimal4)(nil)
)
