{{- define "skyfast.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "skyfast.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "skyfast.labels" -}}
{{ include "skyfast.selectorLabels" . }}
app.kubernetes.io/part-of: skydive
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "skyfast.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "skyfast.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "skyfast.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* The scheme of the HTTP server. */}}
{{- define "skyfast.scheme" -}}
{{- .Values.web.scheme | default (ternary "https" "http" (hasKey .Values.web.config "tls_server_config")) -}}
{{- end -}}

{{/* The Secret with the web configuration. Empty without a web configuration. */}}
{{- define "skyfast.webSecret" -}}
{{- if .Values.web.existingSecret -}}
{{- .Values.web.existingSecret -}}
{{- else if .Values.web.config -}}
{{- printf "%s-web" (include "skyfast.fullname" .) -}}
{{- end -}}
{{- end -}}

{{/* The configuration file: `config` with the analyzers. */}}
{{- define "skyfast.configuration" -}}
{{- $config := deepCopy .Values.config -}}
{{- $pipeline := get $config "pipeline" | default dict -}}
{{- $subscriber := get $pipeline "subscriber" | default dict -}}
{{- if .Values.analyzers -}}
{{- $_ := set $config "analyzers" .Values.analyzers -}}
{{- else if not (or $config.analyzers $subscriber.url $subscriber.urls) -}}
{{- $_ := set $subscriber "url" "dns+ws://skydive-analyzer:8082/ws/subscriber/flow" -}}
{{- $_ := set $pipeline "subscriber" $subscriber -}}
{{- $_ := set $config "pipeline" $pipeline -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* Stops with an error if values contradict each other. */}}
{{- define "skyfast.check" -}}
{{- $pipeline := get .Values.config "pipeline" | default dict -}}
{{- $subscriber := get $pipeline "subscriber" | default dict -}}
{{- $store := get (get $pipeline "store" | default dict) "prom_sky_con" | default dict -}}
{{- if and .Values.analyzers (or .Values.config.analyzers $subscriber.url $subscriber.urls) -}}
{{- fail "set the analyzers either in analyzers or in config, not in both" -}}
{{- end -}}
{{- if and (hasKey $store "port") (ne (int $store.port) 9100) -}}
{{- fail "config.pipeline.store.prom_sky_con.port: the pod listens on port 9100; set service.port instead" -}}
{{- end -}}
{{- if and .Values.web.existingSecret .Values.web.config -}}
{{- fail "set either web.config or web.existingSecret, not both" -}}
{{- end -}}
{{- if and .Values.web.existingSecret (not .Values.web.scheme) -}}
{{- fail "web.existingSecret requires web.scheme" -}}
{{- end -}}
{{- if .Values.probes.enabled -}}
{{- $web := get .Values.config "web" | default dict -}}
{{- if and .Values.web.config.basic_auth_users (not $web.health_without_auth) -}}
{{- fail "web.config.basic_auth_users: probes have no password; set config.web.health_without_auth to true" -}}
{{- end -}}
{{- $tls := get .Values.web.config "tls_server_config" | default dict -}}
{{- if eq ($tls.client_auth_type | default "") "RequireAndVerifyClientCert" -}}
{{- fail "web.config.tls_server_config.client_auth_type: probes have no client certificate; set probes.enabled to false" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.podDisruptionBudget.enabled (eq (int .Values.shards) 1) -}}
{{- fail "podDisruptionBudget.enabled: with one replica, a budget would prevent Kubernetes from draining the node of the pod" -}}
{{- end -}}
{{- end -}}
