// Package serve answers requests for online features over HTTP, in the shapes of Feast's feature server.
//
// A value is given with what it is: PRESENT, NOT_FOUND, NULL_VALUE or OUTSIDE_MAX_AGE, and since when. What can't be known is an
// error and never a value: 503 while Redis is away or a view has no generation that can be read. What the caller did wrong is a
// 4xx whose body says what, where and what to do ([Error]). docs/serve.md is the reference, openapi.json the same for machines.
package serve
