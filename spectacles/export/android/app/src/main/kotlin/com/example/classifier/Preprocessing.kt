package com.example.classifier

import kotlin.math.abs
import kotlin.math.floor
import kotlin.math.max
import kotlin.math.min
import kotlin.math.rint

/** A photo's pixels: red, green and blue (or one grey) byte each, row by row. */
class Pixels(val width: Int, val height: Int, val channels: Int, val bytes: ByteArray)

/** From a photo to the square that the network takes, as in training: each value is the one that Pillow gives. */
class Preprocessing(
    private val size: Int,
    private val resize: String, // crop, squash or pad
    private val interpolation: String, // bilinear or bicubic
    private val grey: Boolean
) {
    fun apply(photo: Pixels): Pixels {
        val across = Side(photo.width, photo.height)
        val down = Side(photo.height, photo.width)
        val narrow = turned(pass(photo, across)) // rows first, then columns
        val square = turned(pass(narrow, down))
        return if (grey) luma(square) else square
    }

    /** One side of the photo: the part that is seen, and where the result has it. */
    private inner class Side(val length: Int, other: Int) {
        val seen = if (resize == "crop") min(length, other).toDouble() else length.toDouble()
        val start = (length - seen) / 2
        val inner = if (resize == "pad") max(1.0, rint(length.toDouble() * size / max(length, other))).toInt() else size
        val offset = (size - inner) / 2
    }

    /** Along rows: width -> size. */
    private fun pass(from: Pixels, side: Side): Pixels {
        val result = ByteArray(size * from.height * 3)
        for (place in 0 until side.inner) {
            val (first, weights) = weights(side, place)
            for (row in 0 until from.height) for (channel in 0 until 3) {
                var sum = 0.0
                for (number in weights.indices) {
                    sum += weights[number] * (from.bytes[(row * from.width + first + number) * 3 + channel].toInt() and 255)
                }
                val value = min(255.0, max(0.0, floor(sum + 0.5)))
                result[(row * size + side.offset + place) * 3 + channel] = value.toInt().toByte()
            }
        }
        return Pixels(size, from.height, 3, result)
    }

    /** The first pixel that counts for one of the result, and how much it and the next ones count. */
    private fun weights(side: Side, place: Int): Pair<Int, DoubleArray> {
        val scale = side.seen / side.inner
        val stretch = max(scale, 1.0)
        val centre = side.start + (place + 0.5) * scale
        val reach = stretch * if (interpolation == "bicubic") 2.0 else 1.0
        val first = max(0.0, floor(centre - reach + 0.5)).toInt()
        val end = min(side.length.toDouble(), floor(centre + reach + 0.5)).toInt()
        val raw = DoubleArray(end - first) { kernel(abs(first + it + 0.5 - centre) / stretch) }
        val sum = raw.sum()
        return Pair(first, DoubleArray(raw.size) { rint(raw[it] / sum * PRECISION) / PRECISION })
    }

    private fun kernel(x: Double): Double = when {
        interpolation == "bilinear" -> max(0.0, 1 - x)
        x < 1 -> (1.5 * x - 2.5) * x * x + 1
        x < 2 -> ((2.5 - 0.5 * x) * x - 4) * x + 2
        else -> 0.0
    }

    private fun turned(from: Pixels): Pixels {
        val result = ByteArray(from.bytes.size)
        for (row in 0 until from.height) for (column in 0 until from.width) for (channel in 0 until 3) {
            result[(column * from.height + row) * 3 + channel] = from.bytes[(row * from.width + column) * 3 + channel]
        }
        return Pixels(from.height, from.width, 3, result)
    }

    /** ITU-R 601. */
    private fun luma(from: Pixels): Pixels {
        val result = ByteArray(from.width * from.height) { place ->
            fun value(channel: Int) = from.bytes[3 * place + channel].toInt() and 255
            ((19595 * value(0) + 38470 * value(1) + 7471 * value(2) + 32768) shr 16).toByte()
        }
        return Pixels(from.width, from.height, 1, result)
    }

    private companion object {
        const val PRECISION = 4194304.0 // Pillow's weights are multiples of 1 / 2**22
    }
}
