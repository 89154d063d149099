{{- define "tiercel.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "tiercel.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains (include "tiercel.name" .) .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "tiercel.name" .) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "tiercel.selector" -}}
app.kubernetes.io/name: {{ include "tiercel.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "tiercel.labels" -}}
{{ include "tiercel.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "tiercel.image" -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}

{{- define "tiercel.authSecret" -}}
{{- default (include "tiercel.fullname" .) .Values.auth.existingSecret -}}
{{- end -}}

{{- define "tiercel.httpSecret" -}}
{{- default (include "tiercel.fullname" .) .Values.http.existingSecret -}}
{{- end -}}

{{/* What values.schema.json cannot say. */}}
{{- define "tiercel.check" -}}
{{- if lt (int .Values.terminationGracePeriodSeconds) (add 7 (int .Values.shutdownTimeoutSeconds) | int) -}}
{{- fail "terminationGracePeriodSeconds must be at least shutdownTimeoutSeconds + 7: what is only in memory is written out in that time" -}}
{{- end -}}
{{- if and (eq .Values.mode "upstream") (not .Values.upstream.url) -}}
{{- fail "mode upstream needs upstream.url, such as redis://redis:6379/0" -}}
{{- end -}}
{{- if and (eq .Values.mode "standalone") .Values.upstream.url -}}
{{- fail "upstream.url is for mode upstream" -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled (not .Values.http.expose) -}}
{{- fail "serviceMonitor.enabled needs http.expose" -}}
{{- end -}}
{{- if and .Values.tls.enabled (not .Values.tls.existingSecret) -}}
{{- fail "tls.enabled needs tls.existingSecret" -}}
{{- end -}}
{{- range $name := list "tls-port" "tls-cert-file" "tls-key-file" "tls-ca-cert-file" "tls-auth-clients" "bind" "dir" "port" "http-port" "http-bind" "shutdown-timeout" "requirepass" "http-token" "upstream" "upstream-auth-file" "protected-mode" "include" "daemonize" -}}
{{- if hasKey $.Values.config $name -}}
{{- fail (printf "config.%s: the chart sets this itself; see the other values" $name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A setting's value; what YAML reads as a number or a truth value is written as tiercel.conf wants it. */}}
{{- define "tiercel.setting" -}}
{{- if kindIs "bool" . -}}{{ ternary "yes" "no" . }}
{{- else if kindIs "float64" . -}}{{ if eq . (floor .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- else -}}{{ . }}{{- end -}}
{{- end -}}

{{- define "tiercel.conf" -}}
bind 0.0.0.0 -::
port {{ ternary 0 6379 (and .Values.tls.enabled .Values.tls.only) }}
{{- if .Values.tls.enabled }}
tls-port {{ int .Values.tls.port }}
tls-cert-file /etc/tiercel/tls/tls.crt
tls-key-file /etc/tiercel/tls/tls.key
tls-ca-cert-file /etc/tiercel/tls/ca.crt
tls-auth-clients {{ .Values.tls.authClients }}
{{- end }}
dir /data
http-port {{ int .Values.http.port }}
http-bind {{ ternary "0.0.0.0" "127.0.0.1" .Values.http.expose }}
shutdown-timeout {{ int .Values.shutdownTimeoutSeconds }}
{{- if not .Values.auth.enabled }}
protected-mode no
{{- end }}
{{- if eq .Values.mode "upstream" }}
upstream {{ .Values.upstream.url }}
{{- if .Values.upstream.existingSecret }}
upstream-auth-file /etc/tiercel/upstream/{{ .Values.upstream.authKey }}
{{- end }}
{{- end }}
{{- range $name, $value := .Values.config }}
{{- range (ternary $value (list $value) (kindIs "slice" $value)) }}
{{ $name }} {{ include "tiercel.setting" . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "tiercel.clientPorts" -}}
{{- if not (and .Values.tls.enabled .Values.tls.only) -}}
- name: redis
  containerPort: 6379
{{- end }}
{{- if .Values.tls.enabled }}
- name: redis-tls
  containerPort: {{ int .Values.tls.port }}
{{- end }}
{{- end -}}

{{- define "tiercel.servicePorts" -}}
{{- if not (and .Values.tls.enabled .Values.tls.only) -}}
- name: redis
  port: {{ int .Values.service.port }}
  targetPort: redis
{{- end }}
{{- if .Values.tls.enabled }}
- name: redis-tls
  port: {{ int .Values.tls.port }}
  targetPort: redis-tls
{{- end }}
{{- end -}}

{{- define "tiercel.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "tiercel.probes" -}}
startupProbe:
  {{- if .Values.http.expose }}
  httpGet: {path: /healthz, port: http}
  {{- else }}
  exec:
    command: [tiercel, --health]
  {{- end }}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: {{ div (int .Values.startupSeconds) 2 }}
readinessProbe:
  {{- if .Values.http.expose }}
  httpGet: {path: /readyz, port: http}
  {{- else }}
  exec:
    command: [tiercel, --ready]
  {{- end }}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
livenessProbe:
  {{- if .Values.http.expose }}
  httpGet: {path: /healthz, port: http}
  {{- else }}
  exec:
    command: [tiercel, --health]
  {{- end }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end -}}

{{/* The pod of both modes. */}}
{{- define "tiercel.pod" -}}
metadata:
  labels:
    {{- include "tiercel.selector" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/config: {{ include "tiercel.conf" . | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ int .Values.terminationGracePeriodSeconds }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 999
    runAsGroup: 999
    fsGroup: 999
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: tiercel
      image: {{ include "tiercel.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: ["/etc/tiercel/conf/tiercel.conf"]
      env:
        {{- if .Values.auth.enabled }}
        - name: TIERCEL_REQUIREPASS_FILE
          value: /etc/tiercel/auth/{{ .Values.auth.passwordKey }}
        {{- end }}
        {{- if .Values.http.expose }}
        - name: TIERCEL_HTTP_TOKEN_FILE
          value: /etc/tiercel/http/{{ .Values.http.tokenKey }}
        {{- end }}
        {{- with .Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      ports:
        {{- include "tiercel.clientPorts" . | trim | nindent 8 }}
        {{- if .Values.http.expose }}
        - name: http
          containerPort: {{ int .Values.http.port }}
        {{- end }}
      {{- include "tiercel.probes" . | nindent 6 }}
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      securityContext:
        {{- include "tiercel.containerSecurity" . | nindent 8 }}
      volumeMounts:
        - name: data
          mountPath: /data
        - name: conf
          mountPath: /etc/tiercel/conf
          readOnly: true
        {{- if .Values.auth.enabled }}
        - name: auth
          mountPath: /etc/tiercel/auth
          readOnly: true
        {{- end }}
        {{- if .Values.http.expose }}
        - name: http
          mountPath: /etc/tiercel/http
          readOnly: true
        {{- end }}
        {{- if .Values.tls.enabled }}
        - name: tls
          mountPath: /etc/tiercel/tls
          readOnly: true
        {{- end }}
        {{- if and (eq .Values.mode "upstream") .Values.upstream.existingSecret }}
        - name: upstream
          mountPath: /etc/tiercel/upstream
          readOnly: true
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: conf
      configMap:
        name: {{ include "tiercel.fullname" . }}
    {{- if .Values.auth.enabled }}
    - name: auth
      secret:
        secretName: {{ include "tiercel.authSecret" . }}
        defaultMode: 0440
        items:
          - {key: {{ .Values.auth.passwordKey }}, path: {{ .Values.auth.passwordKey }}}
    {{- end }}
    {{- if .Values.http.expose }}
    - name: http
      secret:
        secretName: {{ include "tiercel.httpSecret" . }}
        defaultMode: 0440
        items:
          - {key: {{ .Values.http.tokenKey }}, path: {{ .Values.http.tokenKey }}}
    {{- end }}
    {{- if .Values.tls.enabled }}
    - name: tls
      secret:
        secretName: {{ .Values.tls.existingSecret }}
        defaultMode: 0440
    {{- end }}
    {{- if and (eq .Values.mode "upstream") .Values.upstream.existingSecret }}
    - name: upstream
      secret:
        secretName: {{ .Values.upstream.existingSecret }}
        defaultMode: 0440
    {{- end }}
    {{- if or (eq .Values.mode "upstream") (not .Values.persistence.enabled) }}
    - name: data
      emptyDir:
        sizeLimit: {{ .Values.persistence.emptyDirSizeLimit }}
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
{{- end -}}
