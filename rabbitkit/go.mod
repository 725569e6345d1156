module github.com/dovetail-go/dovetail/rabbitkit

go 1.26.0

require (
	github.com/dovetail-go/dovetail v0.1.0
	github.com/rabbitmq/amqp091-go v1.16.0
)
