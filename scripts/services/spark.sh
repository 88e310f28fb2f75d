#!/usr/bin/env bash
# Spark with Iceberg, as a reader of loam's tables: no daemon, a session of a few seconds for each read.
#
#   spark.sh install   installs it below $SVC_HOME, and prints the path of the Python that has it
#
#   SPARK_VERSION        (default 4.0.1)
#   ICEBERG_VERSION      of its Iceberg runtime (default 1.11.0)
#   SQLITE_JDBC_VERSION  of the driver that opens the project's catalog (default 3.50.3.0)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
: "${SPARK_VERSION:=4.0.1}"
: "${ICEBERG_VERSION:=1.11.0}"
: "${SQLITE_JDBC_VERSION:=3.50.3.0}"
venv=$SVC_HOME/spark
what="$SPARK_VERSION $ICEBERG_VERSION $SQLITE_JDBC_VERSION"

# installed: the stamp is written last, so a copy that was cut off, or has other versions, is made again.
installed() { [ "$(cat "$venv/.complete" 2>/dev/null)" = "$what" ] && "$venv/bin/python" -c '' 2>/dev/null; }

has_venv() { python3 -c 'import ensurepip, venv' 2>/dev/null; }

need_java() {
  need_command java default-jre-headless
  local major
  major=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
  [ "${major:-0}" -ge 17 ] || die "Spark $SPARK_VERSION needs Java 17 or later, the java on PATH is ${major:-unknown}"
}

install() {
  need_java
  installed && return
  need_command python3 python3 python3-venv
  has_venv || apt_install "Python's venv" python3-venv
  need_command mvn maven
  log "installing Spark $SPARK_VERSION with Iceberg $ICEBERG_VERSION"
  rm -rf "$venv"
  run "$SVC_HOME/spark.log" python3 -m venv "$venv" || die "make a virtualenv in $venv"
  run "$SVC_HOME/spark.log" "$venv/bin/python" -m pip install -q --no-cache-dir --disable-pip-version-check "pyspark==$SPARK_VERSION" ||
    die "pip install Spark (all of it in $SVC_HOME/spark.log)"
  jars
  echo "$what" >"$venv/.complete"
}

# jars puts Iceberg and the driver of sqlite among Spark's own jars, so that the interpreter is all one has to name.
jars() {
  local pom=$SVC_HOME/pom/spark to
  to=$("$venv/bin/python" -c 'import os, pyspark; print(os.path.join(os.path.dirname(pyspark.__file__), "jars"))')
  mkdir -p "$pom"
  cat >"$pom/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>loam</groupId><artifactId>spark</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.iceberg</groupId><artifactId>iceberg-spark-runtime-${SPARK_VERSION%.*}_2.13</artifactId><version>$ICEBERG_VERSION</version></dependency>
    <dependency><groupId>org.xerial</groupId><artifactId>sqlite-jdbc</artifactId><version>$SQLITE_JDBC_VERSION</version></dependency>
  </dependencies>
</project>
POM
  run "$pom/mvn.log" mvn -B -ntp -q -f "$pom/pom.xml" dependency:copy-dependencies -DincludeScope=runtime -DexcludeTransitive=true \
    -DoutputDirectory="$to" || die "copy Iceberg's jars with mvn (all of it in $pom/mvn.log)"
}

case ${1:-} in
  install) one_at_a_time install; echo "$venv/bin/python" ;;
  *) echo "usage: $0 install" >&2; exit 2 ;;
esac
