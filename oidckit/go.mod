module github.com/dovetail-go/dovetail/oidckit

go 1.26.0

require (
	github.com/dovetail-go/dovetail v0.1.0
	github.com/go-jose/go-jose/v4 v4.1.8
)
