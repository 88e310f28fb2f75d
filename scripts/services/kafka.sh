#!/usr/bin/env bash
# One Kafka for tests: a KRaft node that is broker and controller, on the loopback only, without encryption or log-in.
#
#   kafka.sh install|start|wait|stop|wipe
#   kafka.sh topic NAME PARTITIONS [CONFIG=VALUE ...]   makes a topic, where there is none of that name
#
#   KAFKA_VERSION          (default 4.3.1)
#   KAFKA_PORT             (default 19092)
#   KAFKA_CONTROLLER_PORT  (default KAFKA_PORT + 1)
#   KAFKA_HEAP             (default 1g)
#   KAFKA_DATA             topics, log and pid file (default $SVC_DATA/kafka-$KAFKA_PORT)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
: "${KAFKA_VERSION:=4.3.1}"
: "${KAFKA_PORT:=19092}"
: "${KAFKA_CONTROLLER_PORT:=$((KAFKA_PORT + 1))}"
: "${KAFKA_HEAP:=1g}"
: "${KAFKA_DATA:=$SVC_DATA/kafka-$KAFKA_PORT}"
jars=$SVC_HOME/kafka-$KAFKA_VERSION
pidfile=$KAFKA_DATA/pid
logfile=$KAFKA_DATA/kafka.log

# kafka_tool CLASS ARG...: runs one of Kafka's command line tools. The launchers aren't published as packages; the classes are.
kafka_tool() { java -Xmx256m -XX:TieredStopAtLevel=1 -cp "$KAFKA_DATA/conf:$jars/*" "$@"; }

need_java() {
  need_command java default-jre-headless
  local major
  major=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
  [ "${major:-0}" -ge 17 ] || die "Kafka $KAFKA_VERSION needs Java 17 or later, the java on PATH is ${major:-unknown}"
}

# installed: the stamp is written last, so a copy that was cut off is made again.
installed() { [ -e "$jars/.complete" ]; }

install() {
  need_java
  installed && return
  need_command mvn maven
  local pom=$SVC_HOME/pom/kafka-$KAFKA_VERSION
  mkdir -p "$pom" "$jars"
  # The broker, its command line tools, and something that prints what they log.
  cat >"$pom/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>loam</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$KAFKA_VERSION</version></dependency>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>$KAFKA_VERSION</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
POM
  log "installing Kafka $KAFKA_VERSION"
  run "$pom/mvn.log" mvn -B -ntp -q -f "$pom/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$jars" ||
    die "copy Kafka's jars with mvn (all of it in $pom/mvn.log)"
  touch "$jars/.complete"
}

configure() {
  mkdir -p "$KAFKA_DATA/conf" "$KAFKA_DATA/logs"
  cat >"$KAFKA_DATA/conf/simplelogger.properties" <<'CONF'
org.slf4j.simpleLogger.defaultLogLevel=warn
org.slf4j.simpleLogger.showDateTime=true
org.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS
CONF
  # Records are kept however old their timestamps are: a simulated year would otherwise be deleted while it is read.
  cat >"$KAFKA_DATA/conf/server.properties" <<CONF
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$KAFKA_CONTROLLER_PORT
listeners=PLAINTEXT://127.0.0.1:$KAFKA_PORT,CONTROLLER://127.0.0.1:$KAFKA_CONTROLLER_PORT
advertised.listeners=PLAINTEXT://127.0.0.1:$KAFKA_PORT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=$KAFKA_DATA/logs
log.retention.ms=-1
auto.create.topics.enable=false
num.partitions=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=2
group.initial.rebalance.delay.ms=0
log.cleaner.backoff.ms=1000
log.cleaner.dedupe.buffer.size=33554432
CONF
}

start() {
  alive "$pidfile" && { log "already running on port $KAFKA_PORT"; return; }
  installed && command -v java >/dev/null || one_at_a_time install
  refuse_taken "$KAFKA_PORT" KAFKA_PORT
  refuse_taken "$KAFKA_CONTROLLER_PORT" KAFKA_CONTROLLER_PORT
  configure
  if [ ! -e "$KAFKA_DATA/logs/meta.properties" ]; then
    local id
    id=$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=')
    run "$KAFKA_DATA/format.log" kafka_tool kafka.tools.StorageTool format -t "$id" -c "$KAFKA_DATA/conf/server.properties" ||
      die "format the data folder $KAFKA_DATA"
  fi
  spawn "$pidfile" "$logfile" java -Xms256m "-Xmx$KAFKA_HEAP" -XX:+UseG1GC -cp "$KAFKA_DATA/conf:$jars/*" \
    kafka.Kafka "$KAFKA_DATA/conf/server.properties"
}

# The port of clients opens once the broker has registered with its controller.
ready() { port_open "$KAFKA_PORT"; }

topic() {
  [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || die "topic takes a name and a number of partitions, not \"$*\""
  local name=$1 partitions=$2 configs=() c; shift 2
  for c in "$@"; do configs+=(--config "$c"); done
  alive "$pidfile" || die "not running on port $KAFKA_PORT"
  run "$KAFKA_DATA/topic.log" kafka_tool org.apache.kafka.tools.TopicCommand --bootstrap-server "127.0.0.1:$KAFKA_PORT" \
    --create --if-not-exists --topic "$name" --partitions "$partitions" --replication-factor 1 "${configs[@]}" ||
    die "make topic $name"
}

case ${1:-} in
  install) one_at_a_time install ;;
  start) start ;;
  wait) wait_ready 120 "$pidfile" "$logfile" ready ;;
  stop) stop_process "$pidfile" 30 ;;
  wipe) stop_process "$pidfile" 30; rm -rf "$KAFKA_DATA" ;;
  topic) shift; topic "$@" ;;
  *) echo "usage: $0 install|start|wait|stop|wipe|topic NAME PARTITIONS [CONFIG=VALUE ...]" >&2; exit 2 ;;
esac
